"""A day of uploads through router, queue and fleet, as discrete events: what it costs, and how long it takes."""
