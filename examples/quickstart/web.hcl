# An ordinary HTTP server. It listens on loopback and knows nothing of the mesh: its sidecar takes connections from
# other services, over mutual TLS, and passes on what the intentions allow.
service {
  name = "web"
  port = 9001
  tags = ["v1"]

  check {
    name     = "web answers"
    http     = "http://127.0.0.1:9001/"
    interval = "1s"
    timeout  = "1s"
  }

  connect {
    sidecar_service {}
  }
}
