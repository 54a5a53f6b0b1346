-- Approved addresses (BS7666 logical status 1) only: candidates and history are not somewhere a resident lives.
select uprn::text as uprn, address, postcode, easting, northing
from address
where postcode = :postcode and logical_status = 1
order by street, paon, address, uprn
