package runcmd

import (
	"cmp"
	"flag"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sarnmesh/sarn/catalog"
	"github.com/sarnmesh/sarn/catalog/definition"
	"github.com/sarnmesh/sarn/command/proxycmd"
	"github.com/sarnmesh/sarn/command/servicescmd"
	"github.com/sarnmesh/sarn/command/verb"
)

// A description is what the flags say about the service.
type description struct {
	file                      string
	name, id, address, socket string
	port                      int
	tags, checks, upstreams   *[]string
	meta                      *map[string]string
	interval                  time.Duration
	proxyAddress              string
	proxyPort                 int
	noSidecar                 bool
}

func (d *description) flags(f *flag.FlagSet) {
	f.StringVar(&d.file, "file", "", "`file` that defines the service, in place of -name and what goes with it; HCL or JSON, as for an agent")
	f.StringVar(&d.name, "name", "", "`name` of the service")
	f.StringVar(&d.id, "id", "", "`ID` of the service, one for each instance on the machine; default its name")
	f.StringVar(&d.address, "address", "", "`host` the service is at; default the node's")
	f.IntVar(&d.port, "port", 0, "`port` the program listens on; none for a program that only calls others")
	f.StringVar(&d.socket, "socket", "", "`path` of the unix socket the program listens on, in place of a port")
	d.tags = verb.Strings(f, "tag", "`tag` of the service; repeatable")
	d.meta = verb.Pairs(f, "meta", "metadata `key=value` of the service; repeatable")
	d.checks = verb.Strings(f, "check", "health check: a `URL` http://, https://, tcp://, udp://, grpc:// or h2ping://, "+
		"a path such as /health of the service's port, or the word tcp for a connection to it; repeatable")
	f.DurationVar(&d.interval, "check-interval", 5*time.Second, "`time` between the runs of a -check")
	d.upstreams = verb.Strings(f, "upstream", "service to make reachable for the program, as `name:port` or name:address:port; a name alone gets a free port; repeatable")
	f.StringVar(&d.proxyAddress, "proxy-address", "", "`IP` that others reach the sidecar at; default that of the service")
	f.IntVar(&d.proxyPort, "proxy-port", 0, "`port` that others reach the sidecar at; default a free one")
	f.BoolVar(&d.noSidecar, "no-sidecar", false, "only register the service, without the mesh")
}

// A plan is what is to be registered.
type plan struct {
	service *definition.Service
	sidecar *definition.Service // nil for none
}

// freePort returns a port that is free now.
type freePort func() (int, error)

// plan makes definitions of the flags. Every port is known afterwards.
func (d *description) plan(free freePort) (*plan, error) {
	svc, err := d.service()
	if err != nil {
		return nil, err
	}
	p := &plan{service: svc}
	upstreams, err := d.listUpstreams()
	if err != nil {
		return nil, err
	}
	if d.noSidecar {
		if len(upstreams) > 0 {
			return nil, verb.Errorf("-upstream needs the sidecar that -no-sidecar leaves out")
		}
		if svc.Connect != nil {
			svc.Connect.SidecarService = nil
		}
		return p, nil
	}
	if svc.Kind != "" {
		return nil, verb.Errorf("a service of kind %s has no sidecar: use -no-sidecar, or sarn connect proxy", svc.Kind)
	}
	if svc.Connect != nil && svc.Connect.Native {
		return p, nil
	}
	if p.sidecar, err = d.sidecarOf(svc, upstreams, free); err != nil {
		return nil, err
	}
	svc.Connect = nil // the proxy is registered by itself: it is this process that runs it, not the agent
	return p, nil
}

// service is the service itself, from the file or the flags.
func (d *description) service() (*definition.Service, error) {
	byFlags := d.name != "" || d.id != "" || d.address != "" || d.socket != "" || d.port != 0 || len(*d.tags) > 0 || len(*d.meta) > 0 || len(*d.checks) > 0
	switch {
	case d.file == "" && d.name == "":
		return nil, verb.Usagef("The service needs a -name or a -file")
	case d.file != "" && byFlags:
		return nil, verb.Errorf("-file says what the service is: -name, -id, -address, -port, -socket, -tag, -meta and -check do not go with it")
	case d.port < 0 || d.port > 65535 || d.proxyPort < 0 || d.proxyPort > 65535:
		return nil, verb.Errorf("A port is between 1 and 65535")
	case d.port != 0 && d.socket != "":
		return nil, verb.Errorf("Only one of -port and -socket may be specified")
	case d.interval < time.Second:
		return nil, verb.Errorf("-check-interval is at least 1s")
	}
	if d.file != "" {
		found, err := servicescmd.FromFiles([]string{d.file})
		if err != nil {
			return nil, err
		}
		if len(found) != 1 {
			return nil, verb.Errorf("%s defines %d services, a program is one", d.file, len(found))
		}
		return found[0].Service, nil
	}
	svc := &definition.Service{Name: d.name, ID: d.id, Address: d.address, Port: d.port, SocketPath: d.socket, Tags: *d.tags, Meta: *d.meta}
	for _, text := range *d.checks {
		c, err := parseCheck(text, svc)
		if err != nil {
			return nil, err
		}
		c.Interval = d.interval
		svc.Checks = append(svc.Checks, c)
	}
	return svc, nil
}

// parseCheck reads the value of a -check.
func parseCheck(text string, svc *definition.Service) (definition.Check, error) {
	own := net.JoinHostPort(cmp.Or(svc.Address, "127.0.0.1"), strconv.Itoa(svc.Port))
	if text == "tcp" || strings.HasPrefix(text, "/") {
		if svc.Port == 0 {
			return definition.Check{}, verb.Errorf("-check %s is about the service's port: there is no -port", text)
		}
		if text == "tcp" {
			return definition.Check{Name: "tcp " + own, TCP: own}, nil
		}
		return definition.Check{Name: "GET " + text, HTTP: "http://" + own + text}, nil
	}
	c := definition.Check{Name: text}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" {
		return c, verb.Errorf("-check should be a URL, a path or tcp, not %q", text)
	}
	switch u.Scheme {
	case "http", "https":
		c.HTTP = text
	case "tcp":
		c.TCP = u.Host
	case "udp":
		c.UDP = u.Host
	case "grpc":
		c.GRPC = path.Join(u.Host, u.Path)
	case "h2ping":
		c.H2PING = u.Host
	default:
		return c, verb.Errorf("-check knows no %s:// in %q", u.Scheme, text)
	}
	if _, _, err := net.SplitHostPort(u.Host); err != nil && c.HTTP == "" {
		return c, verb.Errorf("-check %s: %w", text, err)
	}
	return c, nil
}

// listUpstreams reads the values of -upstream. One without a port has port 0.
func (d *description) listUpstreams() ([]catalog.Upstream, error) {
	var out []catalog.Upstream
	for _, text := range *d.upstreams {
		if !strings.Contains(text, ":") && text != "" {
			out = append(out, catalog.Upstream{DestinationName: text})
			continue
		}
		u, err := proxycmd.ParseUpstream(text)
		if err != nil {
			return nil, err
		}
		out = append(out, catalog.Upstream{DestinationName: u.DestinationName, LocalBindAddress: u.LocalBindAddress, LocalBindPort: u.LocalBindPort})
	}
	return out, nil
}

// sidecarOf completes the definition of the service's sidecar.
func (d *description) sidecarOf(svc *definition.Service, upstreams []catalog.Upstream, free freePort) (*definition.Service, error) {
	if svc.Connect == nil || svc.Connect.SidecarService == nil {
		svc.Connect = &definition.Connect{SidecarService: &definition.Service{}}
	}
	given := svc.Connect.SidecarService
	if given.Proxy == nil {
		given.Proxy = &catalog.Proxy{}
	}
	given.Proxy.Upstreams = append(slices.Clone(given.Proxy.Upstreams), upstreams...)
	for i := range given.Proxy.Upstreams {
		u := &given.Proxy.Upstreams[i]
		if u.LocalBindPort == 0 && u.LocalBindSocketPath == "" {
			port, err := free()
			if err != nil {
				return nil, verb.Errorf("Error finding a port for the upstream %s: %w", u.DestinationName, err)
			}
			u.LocalBindPort = port
		}
	}
	given.Address, given.Port = cmp.Or(d.proxyAddress, given.Address), cmp.Or(d.proxyPort, given.Port)
	side, err := svc.ExpandSidecar()
	if err != nil {
		return nil, verb.Errorf("Error making the sidecar of %s: %w", svc.ServiceID(), err)
	}
	if side.Port == 0 && side.SocketPath == "" {
		if side.Port, err = free(); err != nil {
			return nil, verb.Errorf("Error finding a port for the sidecar: %w", err)
		}
	}
	if side.Proxy.LocalServicePort == 0 && side.Proxy.LocalServiceSocketPath == "" {
		side.Proxy.LocalServicePort = 1 // nobody listens there: whoever calls is refused
	}
	if side.Check.Empty() && len(side.Checks) == 0 {
		// Whether it listens needs no check: its own process says so.
		side.Checks = []definition.Check{{Name: "Sidecar of " + svc.ServiceID(), AliasService: svc.ServiceID()}}
	}
	return side, nil
}

var notInNames = regexp.MustCompile(`[^A-Z0-9]+`)

// environment tells the program what it is and where its upstreams are.
func (p *plan) environment() []string {
	var env []string
	set := func(name, value string) { env = append(env, "SARN_"+name+"="+value) }
	set("SERVICE_NAME", p.service.Name)
	set("SERVICE_ID", p.service.ServiceID())
	if p.service.Port != 0 {
		set("SERVICE_PORT", strconv.Itoa(p.service.Port))
	}
	if p.service.Address != "" {
		set("SERVICE_ADDRESS", p.service.Address)
	}
	if p.sidecar == nil {
		return env
	}
	set("SIDECAR_ID", p.sidecar.ServiceID())
	if p.sidecar.Port != 0 {
		set("SIDECAR_PORT", strconv.Itoa(p.sidecar.Port))
	}
	for _, u := range p.sidecar.Proxy.Upstreams {
		name := "UPSTREAM_" + notInNames.ReplaceAllString(strings.ToUpper(u.DestinationName), "_")
		if u.LocalBindSocketPath != "" {
			set(name+"_SOCKET", u.LocalBindSocketPath)
			continue
		}
		host, port := cmp.Or(u.LocalBindAddress, "127.0.0.1"), strconv.Itoa(u.LocalBindPort)
		set(name, net.JoinHostPort(host, port))
		set(name+"_HOST", host)
		set(name+"_PORT", port)
	}
	return env
}

// aliveID is the ID of the check that this process keeps alive for a service.
func aliveID(service string) string { return "run:" + service }

// guard adds to a service what ties it to this process: a check that it has to be heard of, and a mark by which this run
// is told from others of the same service.
func guard(svc *definition.Service, run string, deregisterAfter time.Duration) {
	svc.Checks = append(slices.Clone(svc.Checks), definition.Check{
		ID: aliveID(svc.ServiceID()), Name: "Kept alive by sarn run", TTL: aliveFor, DeregisterCriticalServiceAfter: deregisterAfter,
	})
	meta := map[string]string{runMeta: run}
	for k, v := range svc.Meta {
		if k != runMeta {
			meta[k] = v
		}
	}
	svc.Meta = meta
}

// check finds what is wrong with the definitions before anybody is asked.
func (p *plan) check() error {
	for _, svc := range []*definition.Service{p.service, p.sidecar} {
		if svc == nil {
			continue
		}
		if err := svc.ValidateConfig(); err != nil {
			return verb.Errorf("Invalid service: %w", err)
		}
	}
	return nil
}
