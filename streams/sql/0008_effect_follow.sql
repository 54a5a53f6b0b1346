-- What became of an effect, until the flow has done what follows from it; empty: nothing is left to do. Effects that
-- ended before this release stay as they are: nothing follows from them now.

set local search_path = gateway;

alter table effect add column if not exists follow text;
create index if not exists effect_follow on effect (updated_at) where follow is not null;
