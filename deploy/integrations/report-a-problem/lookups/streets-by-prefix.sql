-- What begins alike is one range of an index that sorts by code points; LIKE would read the whole table in a batch.
select distinct street, town
from address
where street_name collate "C" >= :street and street_name collate "C" < :street_below and logical_status = 1
order by street, town
limit 20
