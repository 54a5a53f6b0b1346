-- The status a recipient last had for a case, in its own words: what the poller compares with, so that a row which only
-- changed because we wrote to it does not carry an old status over a newer one of ours.
alter table gateway.xref add column remote_status text;
