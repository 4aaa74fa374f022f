"""What router, server, worker and CLI agree on: names, contracts and the two write protocols."""
