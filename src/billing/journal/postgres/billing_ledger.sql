create or replace view billing_ledger as
select
    ledger.shard,
    ledger.seq,
    ledger.position,
    ledger.account,
    case ledger.kind
        when 1 then 'created' when 2 then 'money_added' when 3 then 'withdrawn' when 4 then 'velocity_changed'
        when 5 then 'depleted' when 6 then 'spared' when 7 then 'delivered' when 8 then 'carried'
        when 9 then 'adopted' when 10 then 'released' end as kind,
    timestamptz 'epoch' + ledger.at * interval '1 microsecond' as at,
    (ledger.amount::numeric / 1000000)::numeric(20, 6) as amount,
    (case when ledger.kind in (1, 2) then ledger.amount when ledger.kind = 3 then -ledger.amount else 0 end::numeric
        / 1000000)::numeric(20, 6) as moved,
    (ledger.charged::numeric / 1000000)::numeric(20, 6) as charged,
    (ledger.balance::numeric / 1000000)::numeric(20, 6) as balance,
    (ledger.velocity::numeric / 1000000)::numeric(20, 6) as velocity_per_second,
    ledger.version,
    encode(ledger.key, 'escape') as key
from projected join ledger on ledger.shard = projected.shard
