select 'asset' as kind, uprn::text as uprn, name, null as reference, null as category, null as status, null as reported_at
from toilet
where uprn = :uprn
