"""The rules that carry the promise, each with a way to take it away (`mutants.py`)."""

from batch_worker import unfinished
from batch_worker.batch import Batch
from batch_worker.drain import Drain
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.work import Worker
from gpu_server.remembering import RememberingStore
from gpu_server.service import Service
from gpu_server.session_pass import SessionPass
from router_lambda import handler
from router_lambda.route import Router
from shared import chunk_writer, combine, outcomes
from shared.combine import Combiner
from shared.store import Store
from tests.faults.simulation.mutants import (
    Mutant,
    deletes_audio,
    has_deadly,
    has_failing_rivals,
    has_rivals,
    has_two_bad_manifests,
    has_two_failures,
    has_two_failures_of_few,
    has_two_manifests,
    overwrites,
    overwrites_the_complete,
    overwrites_unseen,
    records_want_of_a_header,
    stops_in_a_last_try,
    waits_for_chunk_1,
    works_by_queue,
)

WRITE = chunk_writer.write_transcript
MUTANTS = [
    # shared/chunk_writer.py
    Mutant(
        "the writer reads the output first, and stops where it is done",
        WRITE,
        "if transcribed and (transcribed.is_stitched or not stitched):",
        "if False:",
    ),
    Mutant(
        "a live writer leaves whatever it finds for its input",
        WRITE,
        "if transcribed and (transcribed.is_stitched or not stitched):",
        "if transcribed and stitched and transcribed.is_stitched:",
    ),
    Mutant("superseded audio is not written", WRITE, "if source.etag != job.etag:", "if False:"),
    Mutant("the chunk's PUT is conditional", WRITE, "if_match=current.etag", 'if_match="*"'),
    Mutant("only a record of this very input ends a job", WRITE, "and record_stands(store, job, record)", ""),
    Mutant(
        "of two objects with one number the newer is written",
        WRITE,
        "if (rival := newer_rival(store, source, rivals)) is not None:",
        "if (rival := None) is not None:",
    ),
    Mutant(
        "a lost race is run again",
        WRITE,
        "current = read_outcome(store, job)\n    raise",
        "return Written.ALREADY_DONE\n    raise",
    ),
    Mutant(
        "a write without an answer is looked for",
        WRITE,
        "except (PreconditionFailed, StoreUnavailable) as error:",
        "except PreconditionFailed as error:",
        equivalent="the job fails, and is tried again by whoever asked for it",
    ),
    Mutant("audio is fetched by its ETag", chunk_writer.fetch, "etag=job.etag", 'etag="*"'),
    Mutant(
        "what is gone is said to be",
        WRITE,
        'raise SourceMissing(f"there is no object {job.key} in {job.bucket}")',
        "return Written.SUPERSEDED",
        focus=deletes_audio,
    ),
    # shared/outcomes.py
    Mutant("done means: for this ETag", outcomes.find, "if outcome.is_for(job):", "if outcome.transcript:"),
    Mutant(
        "failed means: for this ETag",
        outcomes.find,
        "if record and record_stands(store, job, record):",
        "if record:",
    ),
    Mutant(
        "a record for want of a header falls when chunk 1 comes",
        outcomes.record_stands,
        "return record.type != HEADER_MISSING or _header_etag(store, job) == record.header_etag",
        "return True",
        focus=records_want_of_a_header,
    ),
    Mutant("a superseded job needs no more work", outcomes.find, "if source and source.etag != job.etag:", "if False:"),
    Mutant(
        "no failure is recorded of superseded audio",
        outcomes.record_failure,
        "if source and source.etag != job.etag:",
        "if False:",
        focus=has_two_failures,
    ),
    Mutant(
        "a record is read before the audio that it is checked against",
        outcomes.record_failure,
        "current = read_error_record(stored.body) if stored else None",
        "stored = store.get(job.audio.error_key); current = read_error_record(stored.body) if stored else None",
        focus=has_two_failures_of_few,
    ),
    Mutant(
        "no failure is recorded of what has its transcript",
        outcomes.record_failure,
        "if read_outcome(store, job).is_for(job):",
        "if False:",
        focus=has_rivals,
    ),
    Mutant(
        "the older of two objects with one number leaves the newer one's record",
        outcomes.record_failure,
        "if rivals and (error.type == DUPLICATE_CHUNK or source is None or newer_rival(store, source, rivals)):",
        "if False:",
        focus=has_failing_rivals,
    ),
    Mutant(
        "a record's PUT is conditional",
        outcomes.put_record,
        "if_match=if_match",
        'if_match="*"',
        focus=has_two_failures,
    ),
    # shared/combine.py
    Mutant(
        "of two objects with one number the newer one counts",
        Combiner._look,
        "max(audio[index], key=precedence)",
        "max(audio[index], key=lambda info: info.key)",
        focus=has_rivals,
    ),
    Mutant(
        "no record is written of a manifest that was replaced",
        Combiner._record_bad_manifest,
        "or self._etag(session.manifest_key) != etag",
        "",
        focus=has_two_bad_manifests,
    ),
    Mutant(
        "indices are compared, not counted",
        Combiner._look,
        "if missing:",
        "if missing and len(outputs) < manifest.chunk_count:",
    ),
    Mutant(
        "each outcome is for the chunk's current audio",
        combine._is_current,
        "return chunk.audio is None or (source.key, source.etag) == (chunk.audio.key, chunk.audio.etag)",
        "return True",
    ),
    Mutant(
        "audio that is gone leaves its outcome standing",
        combine._is_current,
        "chunk.audio is None or",
        "chunk.audio is not None and",
        focus=deletes_audio,
    ),
    Mutant(
        "an outcome without audio has its place in the session",
        Combiner._look,
        "orphans.get(index)",
        "None",
        focus=deletes_audio,
    ),
    Mutant(
        "the session's PUT is conditional",
        Combiner._put,
        "if_match = current.etag if current else ABSENT",
        'if_match = "*"',
    ),
    Mutant(
        "the session's ETags are taken before what it summarises is read",
        Combiner.combine,
        "metadata = {",
        "current = self._store.head(session.output_key);"
        " derived = {name: self._store.head(session.derived_key(name)) for name in DERIVED_FORMATS}; metadata = {",
        focus=overwrites,
    ),
    Mutant(
        "the manifest still is the one that was read",
        Combiner._look,
        "if info.key == session.manifest_key and info.etag != manifest_etag:",
        "if False:",
        focus=has_two_manifests,
    ),
    Mutant(
        "the derived files come first",
        Combiner.combine,
        "for extension in stale:",
        "if not _made_from(current, view): self._put(session.output_key, transcript.to_json(), JSON, current, metadata)"
        "\n            for extension in stale:",
    ),
    Mutant(
        "a combiner stops only when it finds nothing left to write",
        Combiner.combine,
        "self._announce(session, transcript, chunks)",
        "self._announce(session, transcript, chunks); return Combined(Status.COMPLETE, written=True)",
        equivalent="what changes meanwhile has its own event; audio that comes back waits for the sweep",
    ),
    Mutant(
        "spoilt derived files are repaired",
        Combiner.combine,
        "_made_from(current, view) and not stale:",
        "_made_from(current, view):",
        focus=overwrites_the_complete,
    ),
    Mutant(
        "412 is a success only if the same view lies there",
        Combiner._put,
        "if info is None or info.metadata.get(VIEW) != metadata[VIEW]:",
        "if False:",
        focus=has_two_manifests,
    ),
    Mutant(
        "a witness is looked at again",
        Combiner._witness_still_missing,
        "return chunk is not None and (",
        "return chunk is not None or (",
    ),
    Mutant(
        "a witness's record is looked for",
        Combiner._witness_still_missing,
        "and self._etag(chunk.names.error_key) == chunk.error_etag",
        "",
    ),
    Mutant(
        "a witness's audio is looked at",
        Combiner._witness_still_missing,
        "and (chunk.audio is None or self._etag(chunk.audio.key) == chunk.audio.etag)",
        "",
        equivalent="needed for audio that comes back; the sweep's combiner remembers nothing",
    ),
    Mutant(
        "an outcome is read as it was listed",
        Store.get_version,
        "stored is None or stored.etag != etag",
        "stored is None",
        focus=overwrites_the_complete,
    ),
    Mutant(
        "an unreadable chunk stops the session",
        Combiner._read_chunks,
        "if outdated:",
        "if False:",
    ),
    Mutant(
        "losers of a number get their record",
        Combiner._settle_losers,
        "for loser in rivals:",
        "for loser in ():",
        focus=has_rivals,
    ),
    # router_lambda
    Mutant(
        "the router asks S3, not the 200",
        Router._ask,
        "if answer.said is Said.DONE and standing(self.store, job, check_source=True).is_open:",
        "if False:",
    ),
    Mutant(
        "a skipped event completes the session",
        Router._audio,
        "(Decision.SKIPPED, Decision.DIRECT, Decision.FAILED)",
        "(Decision.DIRECT, Decision.FAILED)",
        focus=lambda plan: plan.faults > 0,
    ),
    Mutant(
        "a manifest's event completes the session",
        Router._manifest,
        "combined = self.combiner.combine(session)",
        "return Decided(Decision.CHECKED)",
    ),
    Mutant(
        "what is not finished is the worker's",
        Router._audio,
        "decided = self._enqueue(job, Reason.FAILED, str(error))",
        "decided = Decided(Decision.FAILED)",
    ),
    Mutant(
        "long audio leaves a delayed copy",
        Router._post,
        "self.queue.send(job, Reason.SAFETY_NET, delay=MAX_DELAY_SECONDS)",
        "pass",
    ),
    Mutant(
        "a second try never says that the outputs are new",
        Router._post,
        "post.new and attempts == 0",
        "post.new",
        equivalent="the conditional PUT finds out; it saves work after a crash",
    ),
    Mutant("the handler raises", handler.handler, "errors.append(error)", "pass"),
    # batch_worker
    Mutant(
        "the worker asks S3, not the 200",
        Worker._transcribe,
        "if not found.standing.is_open:  # S3",
        "if answer.said is Said.DONE:  # S3",
        focus=works_by_queue,
    ),
    Mutant(
        "the worker completes the session", Worker._job, "self._complete_session(job.audio)  # before", "pass  # before"
    ),
    Mutant(
        "a message is forgotten only after the work",
        Drain._work,
        "results = self.worker.handle(message.document(), attempts=message.receive_count)",
        "self._delete([message]); results = self.worker.handle(message.document(), attempts=message.receive_count)",
    ),
    Mutant(
        "a message is forgotten only after its session was completed",
        Drain._work,
        "results = self.worker.handle(message.document(), attempts=message.receive_count)",
        "from dataclasses import replace; worker, late = replace(self.worker), [];"
        " worker._complete_session = late.append;"
        " results = worker.handle(message.document(), attempts=message.receive_count);"
        " self._settle(message, results); [self.worker._complete_session(audio) for audio in late]",
    ),
    Mutant("what is for later stays in the queue", Drain._settle, "if Result.LATER in results:", "if False:"),
    Mutant(
        "a letter for later stays",
        Letters._settled,
        "if Result.LATER in results:",
        "if False:",
        focus=waits_for_chunk_1,
    ),
    Mutant(
        "a stitched pass completes its session before its messages are forgotten",
        Worker.stitch,
        "self._complete_session(jobs[0].audio)",
        "pass",
    ),
    Mutant(
        "a manifest's event that Lambda gave up completes the session",
        Worker._upload,
        "self.combiner.combine(parsed.session)",
        "pass",
        focus=lambda plan: plan.broken,
    ),
    Mutant(
        "an event that Lambda gave up is no last try of the audio that is there now",
        Worker._upload,
        "upload.job(self.store)",
        "Upload(upload.bucket, upload.key).job(self.store)",
    ),
    Mutant(
        "nothing is received while no server lives",
        Drain._await_server,
        "if health.ready or health.alive:",
        "if True:",
        focus=lambda plan: not plan.server_up,
    ),
    Mutant(
        "a message that nobody can read is parked",
        Drain._work,
        "self._park(message, error)",
        "self._delete([message])",
        guarded="tests/batch_worker/test_worker.py::"
        "test_an_unreadable_message_is_parked_with_its_reason_and_never_cycles",
    ),
    Mutant(
        "a letter that nobody can read is parked",
        Letters._settled,
        "return self._parked(message, error)",
        "return True",
        guarded="tests/batch_worker/test_worker.py::test_an_unreadable_letter_is_parked_once_however_many_workers_look",
    ),
    Mutant("the sweep finds what was never begun", unfinished._sorted_out, "untouched.append(info.key)", "pass"),
    Mutant("the sweep reads what is in doubt", unfinished._sorted_out, "doubtful.append(info)", "pass"),
    Mutant(
        "a session's transcript settles the audio that it was made from, and no other",
        unfinished._is_settled,
        "and used.etag == info.etag",
        "",
        focus=overwrites_unseen,
    ),
    Mutant(
        "what others may have queued is looked at again",
        Batch.look_further,
        "elif self.drain.is_empty():",
        "elif True:",
        guarded="tests/batch_worker/test_worker.py::test_what_another_worker_found_and_queued_is_not_queued_again",
    ),
    Mutant(
        "what nobody else has done is queued then",
        Batch.look_further,
        "self._queue(doubtful)",
        "pass",
        guarded="tests/batch_worker/test_worker.py::"
        "test_what_is_found_in_a_queue_that_is_never_empty_is_queued_all_the_same",
    ),
    Mutant("dead letters and failures are drained", Letters.run, "while not stopping.is_set():", "while False:"),
    Mutant(
        "a letter that cannot be done gets its record",
        Worker._transcribe,
        "if final and self._was_tried(answer) and not self._may_still_come(job, answer):",
        "if False:",
    ),
    Mutant(
        "a last try has the server alone",
        Worker._transcribe,
        "alone=final",
        "alone=False",
        focus=has_deadly,
    ),
    Mutant(
        "who could not be asked blames nobody",
        Worker._was_tried,
        "answer.said not in (Said.BUSY, Said.UNTRIED)",
        "answer.said is not Said.BUSY",
        focus=lambda plan: plan.faults >= 3,
    ),
    Mutant(
        "who is told to stop blames nobody",
        Worker._was_tried,
        "taken and not self.stopping.is_set()",
        "taken",
        focus=stops_in_a_last_try,
    ),
    Mutant(
        "while chunk 1 may still come, its want is not recorded",
        Worker._transcribe,
        "and not self._may_still_come(job, answer)",
        "",
        focus=waits_for_chunk_1,
    ),
    Mutant(
        "leases are renewed",
        Leases.renew,
        "receipts = list(self._held)",
        "receipts = []",
        equivalent="a message that comes twice finds its work done, or under way; what it saves is work",
    ),
    # gpu_server
    Mutant(
        "who is to be alone here is",
        Service._fly,
        "self.readiness.take_slot(alone=alone)",
        "self.readiness.take_slot()",
    ),
    Mutant(
        "what is remembered is of the version that is asked for",
        RememberingStore.get_version,
        "self._bodies.get((key, etag))",
        "next((body for (name, _), body in self._bodies.items() if name == key), None)",
    ),
    Mutant(
        "a chunk beyond the session's end is not heard by every pass",
        SessionPass._is_open,
        "and _may_be(index_of(job), last)",
        "",
    ),
    Mutant(
        "a stitched pass completes its session",
        Service._run_session,
        "self._complete(session)",
        "pass",
        focus=lambda plan: plan.restitch and plan.faults == 0,
    ),
    Mutant(
        "a job completes its session",
        Service._run_job,
        "betterable = self._complete(session_of(job.audio)) and",
        "betterable = False and",
        guarded="tests/gpu_server/test_app.py::test_the_last_chunk_completes_its_session",
    ),
    Mutant(
        "a failed job completes its session",
        Service._run_job,
        "self._complete(session_of(job.audio))\n",
        "pass\n",
        equivalent="whoever asked does too; what it saves is the wait for a delayed copy",
    ),
    Mutant(
        "a chunk counts as stitched when both sides were heard",
        SessionPass._hear,
        "alone = not _has_both_sides(chunk.index, heard, last)",
        "alone = False",
        guarded="tests/gpu_server/test_session_pass.py::"
        "test_a_chunk_counts_as_stitched_only_when_both_sides_were_heard",
    ),
    Mutant(
        "what has just ended here is looked for",
        Service.start_job,
        "if new and job.job_id not in self._ended else None",
        "if new else None",
    ),
    Mutant("one input is worked on once at a time", Service.start_job, "self._fly(job.job_id,", "self._fly(object(),"),
]
