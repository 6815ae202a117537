-- Run in the file that has the slip: prints what an author would see of it, each line with its source.
local function say(...) io.stdout:write(string.format(...), "\n") end

vim.wait(30000, function() return #vim.diagnostic.get(0) > 0 end)
for _, each in ipairs(vim.diagnostic.get(0)) do
  say("diagnostic %d:%d %s", each.lnum + 1, each.col + 1, each.message)
end
local line, column = unpack(vim.fn.searchpos("resource\\.", "ne"))
local asked = { textDocument = { uri = vim.uri_from_bufnr(0) }, position = { line = line - 1, character = column } }
for _, answer in pairs(vim.lsp.buf_request_sync(0, "textDocument/completion", asked, 30000) or {}) do
  for _, item in ipairs(answer.result.items or answer.result) do
    say("completion %s", item.label)
  end
end
vim.cmd("silent make")
for _, each in ipairs(vim.fn.getqflist()) do
  if each.valid == 1 then
    say("quickfix %s:%d:%d %s", vim.fn.bufname(each.bufnr), each.lnum, each.col, each.text)
  end
end
vim.cmd("qa!")
