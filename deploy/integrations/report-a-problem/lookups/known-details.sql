-- The newest record stands for the person; amounts and claim references stay in the silo.
select forename, surname, email, telephone, postcode, uprn::text as uprn
from claim
where nino = :nino and date_of_birth = :date_of_birth
order by opened_on desc, claim_ref
limit 1
