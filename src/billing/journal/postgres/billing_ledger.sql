create or replace view billing_ledger as
select
    page.shard,
    line.seq,
    line.position,
    line.account,
    case line.kind
        when 1 then 'created' when 2 then 'money_added' when 3 then 'withdrawn' when 4 then 'velocity_changed'
        when 5 then 'depleted' when 6 then 'spared' when 7 then 'delivered' when 8 then 'carried'
        when 9 then 'adopted' when 10 then 'released' end as kind,
    timestamptz 'epoch' + line.at * interval '1 microsecond' as at,
    (line.amount::numeric / 1000000)::numeric(20, 6) as amount,
    (case when line.kind in (1, 2) then line.amount when line.kind = 3 then -line.amount else 0 end::numeric
        / 1000000)::numeric(20, 6) as moved,
    (coalesce(line.charged, 0)::numeric / 1000000)::numeric(20, 6) as charged,
    (line.balance::numeric / 1000000)::numeric(20, 6) as balance,
    (coalesce(line.velocity, 0)::numeric / 1000000)::numeric(20, 6) as velocity_per_second,
    coalesce(line.version, 1) as version,
    encode(line.key, 'escape') as key,
    page.grp
from ledger_progress join ledger_page as page on page.shard = ledger_progress.shard
cross join lateral unnest(page.accounts, page.seqs, page.positions, page.kinds, page.ats, page.amounts, page.balances,
        page.charged, page.velocities, page.versions, page.keys)
    as line (account, seq, position, kind, at, amount, balance, charged, velocity, version, key)
