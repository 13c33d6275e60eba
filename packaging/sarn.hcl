# The agent of this machine. As it is, it runs alone, and nobody outside of the machine reaches it.
# "sarn validate /etc/sarn" checks changes, "systemctl reload sarn" or "sarn reload" makes them act; those of addresses
# and ports need a restart.

data_dir = "/var/lib/sarn"

# The address that other agents reach this machine at; "{{ GetPrivateIP }}" finds it.
bind_addr = "127.0.0.1"

# To join a cluster: some of its servers.
# retry_join = ["10.0.0.1", "10.0.0.2", "10.0.0.3"]

# On a server, besides: how many servers the cluster begins with.
# server           = true
# bootstrap_expect = 3

# HTTP and DNS are answered on loopback; gRPC, which proxies ask, and the sidecars of local services are off.
# ports   { grpc = 8502 }
# connect { sidecars = true }
