-- Asked of the gateway's own cases at the same moment: a report is here before any silo or back office knows of it.
select 'report' as kind, document -> 'asset' ->> 'uprn' as uprn, document -> 'asset' ->> 'name' as name,
       reference, document ->> 'category' as category, status, created_at as reported_at
from cases
where document @> jsonb_build_object('asset', jsonb_build_object('uprn', (:uprn)::text))
  and type = 'public-toilet-problem'
  and status in ('open', 'in_progress')
order by created_at desc
limit 20
