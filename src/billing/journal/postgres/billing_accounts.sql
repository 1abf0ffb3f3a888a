create or replace view billing_accounts as
with recursive step (shard, account) as (
    (select shard, account from ledger order by shard, account limit 1)
    union all
    select further.shard, further.account from step cross join lateral (
        select shard, account from ledger where (shard, account) > (step.shard, step.account)
        order by shard, account limit 1) as further
)
select
    newest.shard,
    newest.account,
    case when newest.stopped_velocity is null and newest.overrun is null then 'active' else 'stopped' end as state,
    (newest.balance::numeric / 1000000)::numeric(20, 6) as balance,
    (newest.velocity::numeric / 1000000)::numeric(20, 6) as velocity_per_second,
    newest.version,
    timestamptz 'epoch' + newest.since * interval '1 microsecond' as since,
    (greatest(0, newest.balance::numeric - floor((greatest(0,
        newest.velocity::numeric * (extract(epoch from now()) * 1000000 - newest.since)) + newest.remainder)
        / 1000000)) / 1000000)::numeric(20, 6) as balance_now,
    (newest.overrun::numeric / 1000000)::numeric(20, 6) as overrun
from step cross join lateral (
    select * from ledger where ledger.shard = step.shard and ledger.account = step.account
    order by seq desc, position desc limit 1) as newest
where newest.kind <> 10
