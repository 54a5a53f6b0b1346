-- So that what is purged by age is found without reading whole tables.

set local search_path = gateway;

create index if not exists idempotency_by_time on idempotency (created_at);
create index if not exists inbox_by_time on inbox (seen_at);
create index if not exists stray_by_time on stray_record (seen_at);
create index if not exists dropped_event_by_time on dropped_event (dropped_at);
create index if not exists effect_check_by_time on effect_check (at);
