create or replace function billing_history(account bigint) returns setof billing_ledger language sql stable as
$$select * from billing_ledger as line where line.grp = ($1 & 1023) and line.account = $1
    order by line.at desc, line.seq desc, line.position desc$$
