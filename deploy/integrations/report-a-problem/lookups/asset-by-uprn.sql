select uprn::text as uprn, name, street_address, easting, northing, category, opening_hours
from toilet
where uprn = :uprn
