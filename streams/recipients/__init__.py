"""The systems that receive cases: one connector a file, declared in an integration's folder recipients/.

What a connector keeps to:

- `apply_each(events, fence)` returns `event_id → error` for the events that were not applied, and is empty when all
  went well. An event it does not name is settled: applied, contained in a later one of the same case, not meant for
  this recipient, its own echo, or older than what is there. A named event was not applied, and nothing of it was
  written; its error is Rejected (park the case) or Retryable (try this case again), with its case_id. Raising instead
  means that nothing can be said of any event: Unavailable, Fenced or Misconfigured.
- `apply(events, fence)`, the consumer's BatchHandler, is the same but raises the first of those errors, after
  everything else was applied. The consumer then hands the rest out again, which changes nothing.
- Applying the same events again, in any mixture, after any death, changes nothing.
- `on_assigned(fence)` makes the epochs of newly owned partitions known to the recipient before the first event.
- The recipient gets the columns its field table names and no other; what it owns is written once, with the new row.
"""
