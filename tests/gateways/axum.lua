-- Requests of one kind, and a check of every answer. LOAD_TABLE is a file that sets `prompts`,
-- `models`, `upstream_of` and `expected`; LOAD_MODE says which requests are sent.
dofile(os.getenv("LOAD_TABLE"))
local mode = os.getenv("LOAD_MODE")
local run = os.getenv("LOAD_RUN")
local threads = {}

function setup(thread)
  thread:set("id", #threads + 1)
  table.insert(threads, thread)
end

function init()
  count, bad, generations, why = 0, 0, "", ""
end

local function body(model, user, text)
  return string.format(
    '{"model":"%s","user":"%s","temperature":0.5,"messages":[{"role":"user","content":"%s"}]}',
    model, user, text)
end

local function new_prompt()
  return string.format("%s, take %s-%d-%d", prompts[count % #prompts + 1], run, id, count)
end

function request()
  count = count + 1
  local place = count % #prompts + 1
  local sent
  if mode == "plain" then
    sent = body(models[count % #models + 1], "plain", prompts[place])
  elseif mode == "miss" or (mode == "mixed" and count % 16 == 0) then
    sent = body("auto", "new", new_prompt())
  else
    sent = body("auto", tostring(place), prompts[place])
  end
  return wrk.format("POST", "/v1/chat/completions", { ["content-type"] = "application/json" }, sent)
end

local function wrong(text)
  bad = bad + 1
  if #why < 1000 then why = why .. text .. "\n" end
end

function response(status, headers, text)
  if status ~= 200 then return wrong(status .. " " .. text) end
  local model = text:match('"model":"([^"]*)"')
  local user = text:match('"user":"([^"]*)"')
  local upstream = text:match('"upstream":"([^"]*)"')
  if not model or upstream_of[model] ~= upstream then return wrong("wrong upstream " .. text) end
  local routed = headers["x-hubrouter-model"]
  if mode == "plain" then
    if routed then wrong("routed " .. text) end
    return
  end
  if routed ~= model then return wrong("header " .. tostring(routed) .. " body " .. text) end
  local generation = headers["x-hubrouter-generation"]
  if not generation or not expected[generation] then
    return wrong("generation " .. tostring(generation))
  end
  if not generations:find(generation, 1, true) then
    generations = generations .. generation .. " "
  end
  if user ~= "new" and expected[generation][tonumber(user)] ~= model then
    wrong("prompt " .. user .. " of " .. generation .. " went to " .. model)
  end
end

function done(summary, latency)
  local wrongs, seen, why = 0, {}, ""
  for _, thread in ipairs(threads) do
    wrongs = wrongs + thread:get("bad")
    for name in thread:get("generations"):gmatch("%S+") do seen[name] = true end
    why = why .. thread:get("why")
  end
  local kinds = 0
  for _ in pairs(seen) do kinds = kinds + 1 end
  local e = summary.errors
  io.write(why)
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.3f,"bad":%d,"errors":%d,"generations":%d,' ..
    '"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration / 1e6, wrongs,
    e.connect + e.read + e.write + e.status + e.timeout, kinds,
    latency:percentile(50), latency:percentile(99)))
end
