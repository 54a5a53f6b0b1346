select uprn::text as uprn, address, postcode, easting, northing from address where postcode = :postcode order by uprn
