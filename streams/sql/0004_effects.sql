-- What may resolve an effect of which nobody knows whether it happened, and what holds one back.

set local search_path = gateway;

-- `idem_expires_at`: until then the provider still knows our key for these bytes. `held`: why nobody claims it now
-- (rate, first_run); empty: nothing holds it. `check_at`, `checks`: when the provider is asked next about an unknown
-- effect, and how often it was.
alter table effect
    add column if not exists idem_expires_at timestamptz,
    add column if not exists held text,
    add column if not exists check_at timestamptz,
    add column if not exists checks integer not null default 0;
create index if not exists effect_unknown_due on effect (check_at) where state = 'unknown';
create index if not exists effect_held on effect (sink, held) where held is not null;

-- A name for what may be told once only, "effect.attempt:<id>:<n>"; most rows have none. The hash does not cover it: it
-- repeats what action and detail say. Adding it alters no row, so chains written before hold together as they are.
alter table audit add column if not exists once text;
create unique index if not exists audit_once on audit (once) where once is not null;

-- What each question about an unknown effect brought: `how` it was asked, and the `answer`.
create table if not exists effect_check (
    effect_id   uuid not null references effect,
    n           integer not null,
    at          timestamptz not null default now(),
    how         text not null,
    answer      text not null,
    detail      text,
    primary key (effect_id, n)
);

-- The sinks that may act. A sink without a row has never run here.
create table if not exists sink_governor (
    sink        text primary key,
    released_at timestamptz,
    released_by text
);
-- A sink that has acted in this database already is no new one: an upgrade must not hold it back.
insert into sink_governor (sink, released_at, released_by)
select distinct sink, now(), 'migration' from effect where attempt > 0
on conflict (sink) do nothing;
