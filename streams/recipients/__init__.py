"""The systems that receive cases: one connector a file, declared in an integration's folder recipients/.

What a connector keeps to:

- `apply_each(events, fence)` returns `event_id → error` for the events that were not applied, and is empty when all
  went well. An event it does not name is settled: applied, contained in a later one of the same case, not meant for
  this recipient, its own echo, or older than what is there. A named event was not applied, and nothing of it was
  written; its error is Rejected (park the case), Retryable (try this case again) or Untried (others took too long, it
  was not its turn), with its case_id. Rows that hang cost a part of the deadline, never more. Raising instead means
  that nothing can be said of any event: Unavailable, Fenced or Misconfigured.
- It may be called for two batches at once, never for one case in both.
- `apply(events, fence)` is the same but raises the first of those errors, after everything else was applied.
- Applying the same events again, in any mixture, after any death, changes nothing.
- `on_assigned(fence)` makes the epochs of newly owned partitions known to the recipient before the first event.
- The recipient gets the columns its field table names and no other; what it owns is written once, with the new row.
"""
