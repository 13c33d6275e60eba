package connectcmd

import (
	"errors"
	"flag"
	"net/http"
	"slices"
	"strings"

	"github.com/hashicorp/consul/api"

	"github.com/sarnmesh/sarn/command/verb"
)

func expose(f *flag.FlagSet) func(*verb.Call) error {
	gateway := f.String("ingress-gateway", "", "`name` of the ingress gateway's service; required")
	service := f.String("service", "", "`name` of the service to let callers in to; required")
	port := f.Int("port", 0, "`port` that the gateway listens on; required")
	protocol := f.String("protocol", "tcp", "`protocol` of the port: tcp, http, http2 or grpc")
	hosts := verb.Strings(f, "host", "additional `host` name that leads to the service; repeatable, not with tcp")
	return func(c *verb.Call) error {
		switch {
		case *service == "":
			return verb.Usagef("A service name must be given via the -service flag.")
		case *gateway == "":
			return verb.Usagef("An ingress gateway service must be given via the -ingress-gateway flag.")
		case *port == 0:
			return verb.Usagef("A port must be provided via the -port flag.")
		}
		if err := c.NoArgs(); err != nil {
			return err
		}
		client, err := c.API()
		if err != nil {
			return err
		}
		entries := client.ConfigEntries()
		conf := &api.IngressGatewayConfigEntry{Kind: api.IngressGateway, Name: *gateway}
		found, _, err := entries.Get(api.IngressGateway, *gateway, c.Query())
		if s := (api.StatusError{}); err != nil && (!errors.As(err, &s) || s.Code != http.StatusNotFound) {
			return verb.Errorf("Error fetching existing ingress gateway configuration: %w", err)
		}
		if old, ok := found.(*api.IngressGatewayConfigEntry); ok && old != nil {
			conf = old
		}
		updated, err := addService(conf, *port, strings.ToLower(*protocol), api.IngressService{Name: *service, Hosts: *hosts})
		if err != nil {
			return err
		}
		if updated {
			c.Printf("Updating service definition for %q on listener with port %d\n", *service, *port)
		}
		switch ok, _, err := entries.CAS(conf, conf.GetModifyIndex(), c.Write()); {
		case err != nil:
			return verb.Errorf("Error writing ingress config entry: %w", err)
		case !ok:
			return verb.Errorf("Ingress config entry was changed while attempting to update, please try again.")
		}
		c.Printf("Successfully updated config entry for ingress service %q\n", *gateway)
		return admit(c, client.Connect(), *gateway, *service)
	}
}

// addService puts a service on the listener with the given port, which it adds if there is none. It reports whether the
// service was there before.
func addService(conf *api.IngressGatewayConfigEntry, port int, protocol string, svc api.IngressService) (updated bool, err error) {
	i := slices.IndexFunc(conf.Listeners, func(l api.IngressListener) bool { return l.Port == port })
	if i < 0 {
		conf.Listeners = append(conf.Listeners, api.IngressListener{Port: port, Protocol: protocol, Services: []api.IngressService{svc}})
		return false, nil
	}
	l := &conf.Listeners[i]
	if l.Protocol != protocol {
		return false, verb.Errorf("Listener on port %d already configured with conflicting protocol %q", port, l.Protocol)
	}
	j := slices.IndexFunc(l.Services, func(s api.IngressService) bool { return s.Name == svc.Name })
	if j < 0 {
		l.Services = append(l.Services, svc)
		return false, nil
	}
	l.Services[j].Hosts = svc.Hosts
	return true, nil
}

// admit lets the gateway call the service.
func admit(c *verb.Call, connect *api.Connect, gateway, service string) error {
	old, _, err := connect.IntentionGetExact(gateway, service, c.Query())
	if err != nil {
		return verb.Errorf("Error looking up existing intention: %w", err)
	}
	if old != nil {
		c.Printf("Intention already exists for %q -> %q\n", gateway, service)
		if old.Action != api.IntentionActionAllow {
			c.Warnf("It does not allow all calls: %s", old)
		}
		return nil
	}
	_, err = connect.IntentionUpsert(&api.Intention{SourceName: gateway, DestinationName: service, Action: api.IntentionActionAllow}, c.Write())
	if err != nil {
		return verb.Errorf("Error creating intention: %w", err)
	}
	c.Printf("Successfully set up intention for %q -> %q\n", gateway, service)
	return nil
}
