# A second ordinary HTTP server. It calls web at 127.0.0.1:9191, where its sidecar listens for it.
service {
  name = "shop"
  port = 9002

  check {
    name     = "shop answers"
    http     = "http://127.0.0.1:9002/"
    interval = "1s"
    timeout  = "1s"
  }

  connect {
    sidecar_service {
      proxy {
        upstreams = [
          {
            destination_name = "web"
            local_bind_port  = 9191
          }
        ]
      }
    }
  }
}
