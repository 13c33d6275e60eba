package xds

// The golden files hold what the built-in proxy is given when it tells requests apart.
func init() { ownHTTP = true }
