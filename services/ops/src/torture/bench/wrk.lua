-- Requests of wrk. Arguments: the kind of request, the file of paths to read or the prefix of new addresses, and the rate of
-- all threads together, 0 for as fast as answers come.
local ffi = require('ffi')
ffi.cdef [[
  typedef struct { long seconds; long micros; } bench_time;
  int gettimeofday(bench_time *time, void *zone);
]]
local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
  thread:set('number', #threads)
end

local time = ffi.new('bench_time')
local function now_ms()
  ffi.C.gettimeofday(time, nil)
  return tonumber(time.seconds) * 1000 + tonumber(time.micros) / 1000
end

function init(arguments)
  kind, source = arguments[1], arguments[2]
  local rate, count = tonumber(arguments[3]), tonumber(arguments[4])
  sent, unexpected = 0, 0
  math.randomseed(number)
  if kind == 'read' then
    -- Formatted once: what the generator saves, the services have.
    requests = {}
    for path in io.lines(source) do requests[#requests + 1] = wrk.format(nil, path) end
  elseif kind == 'constant' then
    requests = { wrk.format() }
  else
    wrk.method = 'POST'
    wrk.headers['Content-Type'] = 'application/json'
    if kind == 'waited' then
      wrk.headers['Prefer'] = 'wait=10'
      -- A 202 says that the wait ended without an outcome. Errors count elsewhere.
      response = function(status) if status ~= 201 and status < 400 then unexpected = unexpected + 1 end end
    end
  end
  if rate > 0 then
    local interval, due = 1000 * count / rate, now_ms()
    -- A slot that was missed is not made up for.
    delay = function()
      local now = now_ms()
      due = math.max(due + interval, now)
      return math.floor(due - now)
    end
  end
end

function request()
  if requests then return requests[math.random(#requests)] end
  sent = sent + 1
  local body = string.format('{"name":"Ada Lovelace","email":"%s-%d-%d@bench.example"}', source, number, sent)
  return wrk.format(nil, nil, nil, body)
end

function done(summary, latency)
  local errors, refused = summary.errors, summary.errors.status
  for _, thread in ipairs(threads) do refused = refused + thread:get('unexpected') end
  io.write(string.format(
    '\nrollcall-bench %d %d %d %d %d %d\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), refused,
    errors.connect + errors.read + errors.write + errors.timeout
  ))
end
