-- Neovim on a Sealane bundle: Cedar's language server with the bundle's own schema, and Sealane's rules by `:make`.
-- Needs `cedar-language-server` and `sealane` on the PATH. In init.lua: dofile("/path/to/neovim.lua")
-- Lay policies out by `sealane policy fmt`: the server's own formatter has other widths and no settings.

vim.cmd("autocmd BufRead,BufNewFile *.cedar setfiletype cedar")

local cache = vim.fn.stdpath("cache") .. "/cedar" -- the server writes ./logs, which must not become part of a bundle
local clients = {} -- by bundle

local function begin(bundle)
  vim.fn.mkdir(cache, "p")
  return vim.lsp.start_client({ name = "cedar", cmd = { "cedar-language-server" }, cmd_cwd = cache, root_dir = bundle })
end

local function attach(args)
  local path = vim.fn.fnamemodify(vim.api.nvim_buf_get_name(args.buf), ":p")
  local manifest = vim.fn.findfile("bundle.toml", vim.fn.fnamemodify(path, ":h") .. ";")
  if manifest == "" then
    return
  end
  local bundle = vim.fn.fnamemodify(manifest, ":p:h")
  clients[bundle] = clients[bundle] or begin(bundle)
  local id = clients[bundle]
  vim.lsp.buf_attach_client(args.buf, id)
  vim.wait(5000, function() return vim.lsp.get_client_by_id(id).initialized end)
  vim.lsp.get_client_by_id(id).request("workspace/executeCommand", {
    command = "cedar.associateSchema",
    arguments = { {
      document_uri = vim.uri_from_fname(path),
      schema_uri = vim.uri_from_fname(bundle .. "/schema.cedarschema"),
    } },
  }, function() end, args.buf)
  vim.bo[args.buf].omnifunc = "v:lua.vim.lsp.omnifunc"
  vim.cmd("lcd " .. vim.fn.fnameescape(bundle)) -- findings name files from there
  vim.bo[args.buf].makeprg = "sealane policy check ."
  vim.bo[args.buf].errorformat = "%f:%l:%c: %trror%m,%f:%l:%c: %tarning%m"
end

vim.api.nvim_create_autocmd("FileType", { pattern = "cedar", callback = attach })
