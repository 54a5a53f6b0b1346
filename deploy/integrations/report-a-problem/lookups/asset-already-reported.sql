-- Reads the gateway's own cases, so a report made a moment ago is seen before any back office knows of it.
select reference, document ->> 'category' as category, status, created_at as reported_at
from cases
where document @> jsonb_build_object('asset', jsonb_build_object('uprn', (:uprn)::text))
  and type = 'public-toilet-problem'
  and status in ('open', 'in_progress')
order by created_at desc
limit 20
