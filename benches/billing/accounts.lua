-- The accounts of forefront's billing as stored procedures of Tarantool 2.6: the peer of the bench.
--
-- Each operation is one transaction: the idempotency key, the account settled to now, an entry of the ledger. An answer is given
-- once box.commit() has returned, so once the log has it. Times are seconds since the epoch as doubles, money is in integer
-- micro-units.
--
-- Written for speed: tuples are unpacked in one call instead of field by field, the ledger has one index, ordered as it grows,
-- keys are in a hash index, and a depletion instant is kept in the account only as far as the way of finding it needs it.
--
-- Settings are in the environment: PORT, WAL_MODE, WEBHOOK, DEPLETIONS. There are three ways of finding who ran dry:
--   indexed       a secondary index by the depletion instant, and a fiber that sleeps until the first one
--   expirationd   the steps and defaults of the module expirationd: 1024 accounts, then a sleep of 1 s or less
--   second        all accounts once a second
-- and `none`, for the cost of operations alone.

local clock = require('clock')
local fiber = require('fiber')
local http = require('http.client')
local log = require('log')

local floor = math.floor
local NEVER = math.huge
local OPEN, STOPPED, DELIVERED = 1, 2, 3
local WORKERS = 64

box.cfg{
    listen = '127.0.0.1:' .. os.getenv('PORT'),
    wal_mode = os.getenv('WAL_MODE'),
    -- Taken as it is needed.
    memtx_memory = 8 * 1024 * 1024 * 1024,
    -- Beyond what the client has under way.
    net_msg_max = 4096,
    readahead = 256 * 1024,
    -- No snapshot falls into a measurement.
    checkpoint_interval = 0,
    log_level = 'warn',
}
box.schema.user.grant('guest', 'read,write,execute,create,alter,drop', 'universe', nil, {if_not_exists = true})

-- id, balance, velocity, since, rest, version, state, instant
-- `rest` is a part of a micro-unit that is spent and not charged yet.
local accounts = box.schema.space.create('accounts')
accounts:create_index('primary', {type = 'tree', parts = {{1, 'unsigned'}}})
-- account, key, procedure, amount, result
local keys = box.schema.space.create('keys')
keys:create_index('primary', {type = 'hash', parts = {{1, 'unsigned'}, {2, 'string'}}})
-- number, account, procedure, amount, balance, time
local ledger = box.schema.space.create('ledger')
ledger:create_index('primary', {type = 'tree', parts = {{1, 'unsigned'}}})

local entries = 0
-- What the fiber of `indexed` sleeps until, and what wakes it before.
local soonest, sooner = NEVER, fiber.cond()
local watched = false
local orders = fiber.channel(100000)

local function note(id, procedure, amount, balance, now)
    entries = entries + 1
    ledger:insert({entries, id, procedure, amount, balance, now})
end

-- When an open account runs dry.
local function instant_of(balance, velocity, since, rest)
    if velocity == 0 or balance == 0 then
        return NEVER
    end
    return since + (balance - rest) / velocity
end

local function put(id, balance, velocity, since, rest, version)
    local instant = instant_of(balance, velocity, since, rest)
    accounts:replace({id, balance, velocity, since, rest, version, OPEN, instant})
    return instant
end

local function wake(instant)
    if watched and instant < soonest then
        sooner:signal()
    end
end

-- What an open account has now, and the part of a micro-unit that it owes.
local function settled(balance, velocity, since, rest, now)
    local spent = velocity * (now - since) + rest
    local whole = floor(spent)
    if whole >= balance then
        return 0, 0
    end
    return balance - whole, spent - whole
end

local function stop(id, velocity, version, at)
    accounts:replace({id, 0, velocity, at, 0, version, STOPPED, NEVER})
    note(id, 'depleted', 0, 0, at)
end

local function refuse(reason)
    box.rollback()
    box.error({code = box.error.PROC_LUA, reason = reason})
end

-- A refusal is kept for its key too.
local function refuse_kept(id, key, procedure, amount, reason)
    keys:insert({id, key, procedure, amount, reason})
    box.commit()
    box.error({code = box.error.PROC_LUA, reason = reason})
end

-- True if the key was used for the same before.
local function is_replay(id, key, procedure, amount)
    local kept = keys:get({id, key})
    if kept == nil then
        return false
    end
    local _, _, its_procedure, its_amount, result = kept:unpack()
    if its_procedure ~= procedure or its_amount ~= amount then
        refuse('key-reused')
    end
    if result ~= 'ok' then
        refuse(result)
    end
    box.rollback()
    return true
end

function create(id, balance, velocity, key)
    box.begin()
    if is_replay(id, key, 'create', balance) then
        return true
    end
    if accounts:get(id) ~= nil then
        refuse('account-exists')
    end
    local now = fiber.time()
    local instant = put(id, balance, velocity, now, 0, 1)
    keys:insert({id, key, 'create', balance, 'ok'})
    note(id, 'create', balance, balance, now)
    box.commit()
    wake(instant)
    return true
end

function get(id)
    local account = accounts:get(id)
    if account == nil then
        box.error({code = box.error.PROC_LUA, reason = 'unknown-account'})
    end
    local _, balance, velocity, since, rest, _, state = account:unpack()
    if state == OPEN then
        balance = settled(balance, velocity, since, rest, fiber.time())
    end
    return {id, balance, velocity}
end

function add_money(id, amount, key)
    box.begin()
    if is_replay(id, key, 'add_money', amount) then
        return true
    end
    local account = accounts:get(id)
    if account == nil then
        refuse('unknown-account')
    end
    local now = fiber.time()
    local _, balance, velocity, since, rest, version, state = account:unpack()
    if state == OPEN then
        balance, rest = settled(balance, velocity, since, rest, now)
    else
        balance, rest, version = 0, 0, version + 1
    end
    balance = balance + amount
    local instant = put(id, balance, velocity, now, rest, version)
    keys:insert({id, key, 'add_money', amount, 'ok'})
    note(id, 'add_money', amount, balance, now)
    box.commit()
    wake(instant)
    return true
end

function withdraw(id, amount, key)
    box.begin()
    if is_replay(id, key, 'withdraw', amount) then
        return true
    end
    local account = accounts:get(id)
    if account == nil then
        refuse('unknown-account')
    end
    local now = fiber.time()
    local _, balance, velocity, since, rest, version, state, instant = account:unpack()
    if state ~= OPEN then
        refuse_kept(id, key, 'withdraw', amount, 'insufficient-funds')
    end
    if instant <= now then
        stop(id, velocity, version, instant)
        keys:insert({id, key, 'withdraw', amount, 'insufficient-funds'})
        box.commit()
        orders:put({id, version})
        box.error({code = box.error.PROC_LUA, reason = 'insufficient-funds'})
    end
    balance, rest = settled(balance, velocity, since, rest, now)
    if balance < amount then
        refuse_kept(id, key, 'withdraw', amount, 'insufficient-funds')
    end
    balance = balance - amount
    if balance == 0 then
        stop(id, velocity, version, now)
    else
        instant = put(id, balance, velocity, now, rest, version)
    end
    keys:insert({id, key, 'withdraw', amount, 'ok'})
    note(id, 'withdraw', amount, balance, now)
    box.commit()
    if balance == 0 then
        orders:put({id, version})
    else
        wake(instant)
    end
    return true
end

function update_spending_velocity(id, velocity, key)
    box.begin()
    if is_replay(id, key, 'update_spending_velocity', velocity) then
        return true
    end
    local account = accounts:get(id)
    if account == nil then
        refuse('unknown-account')
    end
    local now = fiber.time()
    local _, balance, old, since, rest, version, state, instant = account:unpack()
    local dry = state == OPEN and instant <= now
    if dry then
        stop(id, old, version, instant)
    end
    if dry or state ~= OPEN then
        accounts:update(id, {{'=', 3, velocity}})
        instant = NEVER
    else
        balance, rest = settled(balance, old, since, rest, now)
        instant = put(id, balance, velocity, now, rest, version)
    end
    keys:insert({id, key, 'update_spending_velocity', velocity, 'ok'})
    note(id, 'update_spending_velocity', velocity, balance, now)
    box.commit()
    if dry then
        orders:put({id, version})
    end
    wake(instant)
    return true
end

-- The instants of accounts `first` to `last` in microseconds, for the bench; NEVER is not in it.
function instants(first, last)
    local found = {}
    for _, account in accounts:pairs(first, {iterator = 'GE'}) do
        if account[1] > last then
            break
        end
        if account[8] < NEVER then
            table.insert(found, {account[1], account[8] * 1e6})
        end
    end
    return found
end

-- Takes them away, for the bench.
function forget(first, last)
    box.begin()
    for id = first, last do
        accounts:delete(id)
    end
    box.commit()
    return true
end

-- ------------------------------------------------------------------------------------------------------------- orders

local function deliver()
    local client = http.new({max_connections = 1})
    local url = os.getenv('WEBHOOK')
    while true do
        local id, version = unpack(orders:get())
        local options = {timeout = 5, headers = {['Idempotency-Key'] = id .. '-' .. version}}
        local pause = 0.1
        while true do
            local answer = client:get(url .. id, options)
            if answer.status >= 200 and answer.status < 300 then
                break
            end
            fiber.sleep(pause)
            pause = math.min(pause * 2, 30)
        end
        box.begin()
        local account = accounts:get(id)
        if account ~= nil and account[6] == version and account[7] == STOPPED then
            accounts:update(id, {{'=', 7, DELIVERED}})
        end
        box.commit()
    end
end

-- Those of `due` that still are, in one transaction; their orders leave after it.
local function deplete(due, now)
    local stopped = {}
    box.begin()
    for _, id in ipairs(due) do
        local _, _, velocity, _, _, version, state, instant = accounts:get(id):unpack()
        if state == OPEN and instant <= now then
            stop(id, velocity, version, instant)
            table.insert(stopped, {id, version})
        end
    end
    box.commit()
    for _, order in ipairs(stopped) do
        orders:put(order)
    end
end

-- --------------------------------------------------------------------------------------------------- finding who is dry

local BATCH = 1000

local function watch_index()
    local index = accounts:create_index('instant', {type = 'tree', unique = false, parts = {{8, 'number'}}})
    watched = true
    while true do
        local first = index:min()
        soonest = first == nil and NEVER or first[8]
        local left = soonest - clock.time()
        if left > 0 then
            sooner:wait(left)
        else
            local now = clock.time()
            local due = {}
            for _, account in index:pairs() do
                if account[8] > now or #due == BATCH then
                    break
                end
                table.insert(due, account[1])
            end
            deplete(due, now)
        end
    end
end

local checked = 0

-- Calls back with those of the next `limit` accounts after `last` that are dry; gives the last one looked at.
local function look(last, limit, found)
    local key = last == nil and {} or last
    local page = accounts:select(key, {iterator = last == nil and 'ALL' or 'GT', limit = limit})
    local now = clock.time()
    for _, account in ipairs(page) do
        if account[8] <= now then
            found(account[1], now)
        end
    end
    checked = checked + #page
    return #page > 0 and page[#page][1] or nil
end

local function watch_as_expirationd()
    local TUPLES_PER_ITERATION, FULL_SCAN_TIME, MAX_DELAY = 1024, 3600, 1
    while true do
        local last
        repeat
            last = look(last, TUPLES_PER_ITERATION, function(id, now) deplete({id}, now) end)
            if last ~= nil then
                fiber.sleep(math.min(MAX_DELAY, TUPLES_PER_ITERATION * FULL_SCAN_TIME / accounts:len()))
            end
        until last == nil
        fiber.sleep(MAX_DELAY)
    end
end

local function watch_each_second()
    while true do
        local began = clock.monotonic()
        local due, last = {}, nil
        repeat
            last = look(last, BATCH, function(id) table.insert(due, id) end)
            fiber.yield()
        until last == nil
        for at = 1, #due, BATCH do
            deplete({unpack(due, at, math.min(at + BATCH - 1, #due))}, clock.time())
        end
        fiber.sleep(math.max(0, began + 1 - clock.monotonic()))
    end
end

local ways = {indexed = watch_index, expirationd = watch_as_expirationd, second = watch_each_second}
local watcher

-- How it is found who ran dry from now on. For the bench, which compares them on the same accounts.
function find_by(way)
    if watcher ~= nil then
        watcher:cancel()
        watcher = nil
    end
    if accounts.index.instant ~= nil then
        watched = false
        accounts.index.instant:drop()
    end
    if ways[way] ~= nil then
        watcher = fiber.new(ways[way])
        watcher:name(way)
    end
    return true
end

-- Accounts looked at so far by a scan, and bytes of tuples and indexes by space.
function figures()
    local bytes = {}
    for _, space in ipairs({accounts, keys, ledger}) do
        local sum = space:bsize()
        for number, index in pairs(space.index) do
            if type(number) == 'number' then
                sum = sum + index:bsize()
            end
        end
        bytes[space.name] = sum
    end
    return {checked = checked, bytes = bytes}
end

for _ = 1, WORKERS do
    fiber.create(deliver)
end
find_by(os.getenv('DEPLETIONS'))
log.warn('ready')
