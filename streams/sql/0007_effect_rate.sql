-- How many acts of a sink there were in the last hour is asked at each claim.

set local search_path = gateway;

create index if not exists effect_attempt_by_time on effect_attempt (started_at);
