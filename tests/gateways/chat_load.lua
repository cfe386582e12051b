-- Chat requests for wrk: `model: auto` and 40 prompts, from which on each thread begins elsewhere.
-- In the environment: KIND=same has one prompt. A bad answer is one that is not 200, or not routed.
local kind = os.getenv("KIND")
local path = os.getenv("CHAT_PATH") or "/v1/chat/completions"
local ask = '{"model": "auto", "messages": [{"role": "user", "content": "%s"}]}'
local asks = { "Which bird is singing in this recording?", "Translate this letter into Spanish.",
  "Write down what is said in this meeting.", "Summarise this article." }
local threads = {}

function setup(thread)
  thread:set("at", #threads * 7)
  table.insert(threads, thread)
end

function init()
  wrk.method = "POST"
  wrk.headers["content-type"] = "application/json"
  answers, bad, first = 0, 0, ""
end

function request()
  at = at + 1
  local text = asks[1 + at % #asks]
  if kind ~= "same" then text = text .. " Number " .. at % 40 .. "." else text = asks[1] end
  return wrk.format(nil, path, nil, ask:format(text))
end

-- Latencies are measured without a look at the answers, which costs as much as they do.
if kind ~= "same" then
  function response(status, headers, body)
    answers = answers + 1
    if status ~= 200 or not headers["x-hubrouter-model"] or body:find('"auto"', 1, true) then
      bad = bad + 1
      first = status .. " " .. (headers["x-hubrouter-reason"] or "no reason") .. " " .. body
    end
  end
end

function done(summary, latency)
  local errors, all, wrong, example = summary.errors, 0, 0, ""
  for _, thread in ipairs(threads) do
    all, wrong = all + thread:get("answers"), wrong + thread:get("bad")
    if thread:get("first") ~= "" then example = thread:get("first") end
  end
  local broken = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(("RESULT requests=%d looked_at=%d failed=%d p50_us=%.1f p99_us=%.1f"):format(
    summary.requests, all, wrong + broken, latency:percentile(50), latency:percentile(99)))
  if example ~= "" then print("one of them: " .. example) end
end
