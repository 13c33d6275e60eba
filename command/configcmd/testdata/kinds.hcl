# What stands in front of a service decides: a sidecar, a terminating gateway, or the application itself.
entry {
  Kind     = "terminating-gateway"
  Name     = "exit"
  Services = [{ Name = "legacy" }, { Name = "other" }]
}

entry {
  Kind     = "service-defaults"
  Name     = "legacy"
  Protocol = "http"
}

entry {
  Kind     = "service-defaults"
  Name     = "web"
  Protocol = "http"
}

entry {
  Kind    = "service-intentions"
  Name    = "legacy"
  Sources = [{ Name = "web", Permissions = [{ Action = "allow", HTTP { PathExact = "/ok" } }] }]
}

entry {
  Kind    = "service-intentions"
  Name    = "native"
  Sources = [{ Name = "web", Action = "allow" }]
}

service "web" { upstreams = ["legacy"] }
service "exit" {
  kind = "terminating-gateway"
  port = 8443
}
service "legacy" { kind = "plain" }
service "other" { kind = "plain" }
service "native" { kind = "native" }

test "a gateway lets through what it may" {
  from = "web"
  to   = "legacy"
  path = "/ok"
  expect {
    allowed    = true
    instances  = 1
    permission = 1
  }
}

test "and nothing else" {
  from = "web"
  to   = "legacy"
  path = "/no"
  expect {
    allowed    = false
    status     = 403
    by_default = true
  }
}

test "a native application decides about connections" {
  from = "web"
  to   = "native"
  expect {
    allowed   = true
    intention = "web => native"
    reason    = "the application itself asks"
  }
}

test "also when it refuses" {
  from = "other"
  to   = "native"
  expect {
    allowed    = false
    by_default = true
  }
}
