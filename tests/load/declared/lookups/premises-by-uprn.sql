select uprn::text as uprn, address from premises where uprn = :uprn
