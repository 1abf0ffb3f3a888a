create or replace view billing_accounts as
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
from ledger_progress as progress
cross join generate_series(0::bigint, 1023::bigint) as own (grp)
cross join lateral (
    select coalesce(max(account_page.seq), -1) as seq from account_page
    where account_page.shard = progress.shard and account_page.grp = own.grp) as base
cross join lateral (
    select distinct on (known.account) known.* from (
        select page.shard, account.id as account, page.seq, 0::bigint as position, 8::bigint as kind, account.balance,
            account.velocity, account.version, account.since, coalesce(account.remainder, 0) as remainder,
            account.stopped_velocity, account.overrun
        from account_page as page cross join lateral unnest(page.ids, page.balances, page.velocities, page.versions,
                page.sinces, page.remainders, page.stopped_velocities, page.overruns)
            as account (id, balance, velocity, version, since, remainder, stopped_velocity, overrun)
        where page.shard = progress.shard and page.grp = own.grp
        union all
        select page.shard, line.account, line.seq, line.position, line.kind, line.balance, coalesce(line.velocity, 0),
            coalesce(line.version, 1), coalesce(line.since, line.at), coalesce(line.remainder, 0),
            line.stopped_velocity, line.overrun
        from ledger_page as page cross join lateral unnest(page.accounts, page.seqs, page.positions, page.kinds, page.ats,
                page.balances, page.velocities, page.versions, page.sinces, page.remainders, page.stopped_velocities,
                page.overruns)
            as line (account, seq, position, kind, at, balance, velocity, version, since, remainder, stopped_velocity,
                overrun)
        where page.shard = progress.shard and page.grp = own.grp and page.last_seq > base.seq and line.seq > base.seq
    ) as known order by known.account, known.seq desc, known.position desc) as newest
where newest.kind <> 10
