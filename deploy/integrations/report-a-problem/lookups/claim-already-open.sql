-- Says only that there is one, never whose or how much.
select 1 as exists
from claim
where nino = :nino and date_of_birth = :date_of_birth and status = 'open'
limit 1
