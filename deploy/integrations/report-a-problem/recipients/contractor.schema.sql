-- The fault desk of the contractor who repairs the toilets: another firm, another product, other words for the same things.
-- The demo and the tests make it; in real life it is the contractor's.

create table fault_codes (
    fault_code  char(3) primary key,
    meaning     varchar(60) not null,
    hours_to_fix integer not null
);
insert into fault_codes values
    ('CLN', 'Cleaning', 24),
    ('BLK', 'Blockage', 8),
    ('FIX', 'Broken fitting', 72),
    ('VAN', 'Vandalism', 48),
    ('SUP', 'Consumables', 24),
    ('OTH', 'Other', 120);

create table fault_log (
    "FaultID"       uuid primary key default gen_random_uuid(),
    client_ref      varchar(24) not null unique,
    client_rev      integer not null,
    logged_on       timestamp not null,         -- local time, as everything in this product
    fault_code      char(3) not null references fault_codes,
    status_code     varchar(10) not null,
    lat             numeric(9, 6) not null check (lat between 49 and 61),
    lon             numeric(9, 6) not null check (lon between -9 and 3),
    asset_ref       varchar(16) not null,
    site            varchar(200) not null,
    fault_text      varchar(2000) not null,
    access_note     varchar(250),
    caller_name     varchar(100),
    caller_phone    varchar(20),
    assigned_to     varchar(60),                -- the contractor's own: Silogate never writes it
    modified_at     timestamptz not null default clock_timestamp()
);
create index fault_log_modified on fault_log (modified_at, "FaultID");

create function fault_log_stamp() returns trigger language plpgsql as $$
begin
    new.modified_at := clock_timestamp();
    return new;
end $$;
create trigger fault_log_stamp before insert or update on fault_log for each row execute function fault_log_stamp();

-- The one table Silogate asks for: which worker may write. It keeps a stalled process from overwriting newer work.
create table silogate_fence (
    consumer_group  text not null,
    topic           text not null,
    partition       integer not null,
    epoch           bigint not null,
    primary key (consumer_group, topic, partition)
);
