-- The box uses the index; the circle decides. OSGB36 is in metres, so Pythagoras is right at this size. Nearest first by
-- the exact distance, as two that are shown with the same metres may still differ.
select uprn::text as uprn, name, street_address, easting, northing,
       round(sqrt((easting - :easting) * (easting - :easting) + (northing - :northing) * (northing - :northing)))::int as metres
from toilet
where easting between :easting - :metres and :easting + :metres
  and northing between :northing - :metres and :northing + :metres
  and (easting - :easting) * (easting - :easting) + (northing - :northing) * (northing - :northing) <= :metres * :metres
order by (easting - :easting) * (easting - :easting) + (northing - :northing) * (northing - :northing), toilet.uprn
