-- The job database of the council's own street team, as its supplier delivered it: Silogate did not choose these names.
-- The demo and the tests make it; in a council it is already there.

create schema street;

create table street.job_type (
    code        varchar(30) primary key,
    description varchar(80) not null
);
insert into street.job_type values
    ('LITTER_TOILET', 'Litter in or around a public toilet'),
    ('DOG_FOULING', 'Dog fouling'),
    ('BLOCKAGE', 'Blocked toilet, urinal or basin'),
    ('REPAIR', 'Broken fitting'),
    ('VANDALISM', 'Damage and graffiti'),
    ('RESTOCK', 'Paper, soap or towels used up'),
    ('GENERAL', 'Anything else');

create table street.job (
    job_no          bigint generated always as identity primary key,
    gateway_ref     varchar(20) unique,         -- null: raised by telephone, nothing to do with Silogate
    gateway_version bigint,
    raised_at       timestamptz not null,
    job_type        varchar(30) not null references street.job_type,
    state           varchar(12) not null default 'new' check (state in ('new', 'doing', 'done', 'no action')),
    priority        smallint not null default 3 check (priority between 1 and 5),
    site_uprn       bigint,
    site_name       varchar(120) not null,
    easting         numeric(8, 2) not null,
    northing        numeric(9, 2) not null,
    postcode        varchar(8),
    where_exactly   varchar(200),
    details         varchar(4000) not null,
    reporter        varchar(100),
    crew            varchar(30),                -- the team's own: Silogate never writes it
    modified_at     timestamptz not null default clock_timestamp()
);
create index job_modified on street.job (modified_at, job_no);

create function street.stamp() returns trigger language plpgsql as $$
begin
    new.modified_at := clock_timestamp();
    return new;
end $$;
create trigger job_stamp before insert or update on street.job for each row execute function street.stamp();

-- The one table Silogate asks for: which worker may write. It keeps a stalled process from overwriting newer work.
create table silogate_fence (
    consumer_group  text not null,
    topic           text not null,
    partition       integer not null,
    epoch           bigint not null,
    primary key (consumer_group, topic, partition)
);
