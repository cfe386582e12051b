-- Routes chat requests inside nginx: the C library through LuaJIT's FFI. nginx.conf shows the use.
local ffi = require "ffi"

local M = {}

-- The declarations of the installed header, which LuaJIT reads but for the preprocessor's lines. Of
-- those the header has only these conditions, as they are for C11.
local conditions = {
  ["#ifndef HUBROUTER_H"] = true,
  ["#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L"] = false,
  ["#if __STDC_VERSION__ >= 202311L"] = false,
  ["#ifndef __cplusplus"] = true,
  ["#ifdef __cplusplus"] = false,
}

local function declarations(path)
  local kept, within = {}, { true }
  for line in io.lines(path) do
    local at = #within
    if line:find("^#endif") then
      within[at] = nil
    elseif line:find("^#else") then
      within[at] = within[at - 1] and not within[at]
    elseif line:find("^#if") then
      local holds = conditions[line:gsub("%s+$", "")]
      assert(holds ~= nil, path .. ": expected a known condition, found " .. line)
      within[at + 1] = within[at] and holds
    elseif within[at] and not line:find("^#") then
      kept[#kept + 1] = line
    end
  end
  return table.concat(kept, "\n")
end

local C, router, policy, fallback
-- None is routed by a worker that could not open its router.
local names = {}
-- Written by one call at a time: no call yields.
local out = {}

local function text(str)
  return str.ptr ~= nil and ffi.string(str.ptr, str.len) or nil
end

-- The error of the last call, if it failed.
local function failure(status)
  if status == 0 then return nil end
  local message = "status " .. status
  if out.error[0] ~= nil then
    message = ffi.string(C.hubrouter_status_name(status)) .. ": "
      .. ffi.string(C.hubrouter_error_message(out.error[0]))
    C.hubrouter_error_free(out.error[0])
  end
  return message
end

-- For init_by_lua: reads the header. `prefix`: where include/install.sh put the library.
function M.load(prefix)
  ffi.cdef(declarations(prefix .. "/include/hubrouter.h"))
  C = ffi.load(prefix .. "/lib/libhubrouter.so.1")
end

-- For init_worker_by_lua, so that every worker has a router of its own.
-- `with`: store, options, policy (JSON), fallback, names (`auto`), seconds between looks at the store.
function M.open(with)
  out.router = ffi.new("hubrouter_router *[1]")
  out.policy = ffi.new("hubrouter_policy *[1]")
  out.decision = ffi.new("hubrouter_decision *[1]")
  out.error = ffi.new("hubrouter_error *[1]")
  out.summary = ffi.new("hubrouter_summary", { size = ffi.sizeof("hubrouter_summary") })
  out.ranked = ffi.new("hubrouter_ranked", { size = ffi.sizeof("hubrouter_ranked") })
  out.changed = ffi.new("int32_t[1]")
  out.length = ffi.new("size_t[1]")
  local options = with.options or '{"device": "cpu", "threads": 1, "cache_bytes": 67108864}'
  local failed = failure(C.hubrouter_router_open(
    with.store, #with.store, options, #options, out.router, out.error))
  if failed then error(failed) end
  router = ffi.gc(out.router[0], C.hubrouter_router_free)
  if with.policy then
    failed = failure(C.hubrouter_policy_compile(
      router, with.policy, #with.policy, out.policy, out.error))
    if failed then error(failed) end
    policy = ffi.gc(out.policy[0], C.hubrouter_policy_free)
  end
  fallback, names = with.fallback, with.names or { auto = true }
  if (with.seconds or 1) > 0 then
    ngx.timer.every(with.seconds or 1, function()
      local failed = failure(C.hubrouter_router_refresh(router, out.changed, out.error))
      if failed then ngx.log(ngx.WARN, "hubrouter: ", failed) end
    end)
  end
end

-- The model that the chat request `body` names, or nothing.
local function model_of(body)
  local room = #body
  local buffer = ffi.new("char[?]", room)
  local status = C.hubrouter_chat_model(body, #body, buffer, room, out.length, nil)
  return status == 0 and ffi.string(buffer, out.length[0]) or nil
end

-- `body` with the model `name`; no other byte changes.
local function with_model(body, name)
  local room = #body + 6 * #name + 2
  local buffer = ffi.new("char[?]", room)
  local failed = failure(C.hubrouter_chat_with_model(
    body, #body, name, #name, buffer, room, out.length, out.error))
  if failed then error(failed) end
  return ffi.string(buffer, out.length[0])
end

local function body_of_request()
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  local path = not body and ngx.req.get_body_file()
  if path then
    local file = assert(io.open(path, "rb"))
    body = file:read("*a")
    file:close()
  end
  return body
end

-- The model for the chat request `body`, or nothing; why; and the generation.
local function decide(body)
  local rest = '{"top": 1}'
  local failed = failure(C.hubrouter_router_route_chat(
    router, body, #body, 0, rest, #rest, policy, out.decision, out.error))
  if failed then return nil, "failed", nil, failed end
  local decision, summary, ranked = out.decision[0], out.summary, out.ranked
  C.hubrouter_decision_summary(decision, summary, nil)
  local generation, fell_back = text(summary.generation), text(summary.fallback)
  local name, reason = nil, "abstained"
  if summary.ranked > 0 and (fell_back or not text(summary.abstained)) then
    C.hubrouter_decision_ranked(decision, 0, ranked, nil)
    name = text(ranked.deployment) or text(ranked.model)
    reason = fell_back and "policy_fallback" or summary.cached == 1 and "cached" or "decided"
  end
  C.hubrouter_decision_free(decision)
  return name, reason, generation
end

-- For access_by_lua: `model: auto` becomes a model of the hub, and headers say which. A request is
-- never refused: without a decision the fallback answers or, without one, it goes on with `auto`.
function M.route()
  for _, header in ipairs { "model", "reason", "generation" } do
    ngx.req.clear_header("x-hubrouter-" .. header)
  end
  local body = ngx.req.get_method() == "POST" and body_of_request()
  if not body or not names[model_of(body) or ""] then return end
  local called, name, reason, generation, failed = pcall(decide, body)
  if not called then name, reason, generation, failed = nil, "failed", nil, name end
  if failed then ngx.log(ngx.WARN, "hubrouter: not routed: ", failed) end
  name = name or fallback
  if name then
    ngx.req.set_body_data(with_model(body, name))
    ngx.req.set_header("x-hubrouter-model", name)
  end
  ngx.req.set_header("x-hubrouter-reason", reason)
  ngx.req.set_header("x-hubrouter-generation", generation)
end

return M
