//go:build unix

package e2e

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

// TestPrometheusFindsTargets has Prometheus find what to scrape in the registry: targets come with the labels of their
// instances, and go with them; what is scraped among it are the metrics of the agent. It asks with a token that may do no
// more than find services. Debian builds Prometheus without the discovery, which runs beside it here.
func TestPrometheusFindsTargets(t *testing.T) {
	binary(t)
	prometheus, consulsd := tool(t, "prometheus"), tool(t, "consulsd")
	a := single(t, map[string]any{
		"telemetry": map[string]any{"prometheus_retention_time": "10m", "disable_hostname": true},
		"acl": map[string]any{"enabled": true, "default_policy": "deny", "tokens": map[string]any{
			"initial_management": operatorToken, "agent": operatorToken, "default": operatorToken,
		}},
	})
	a.must(t, "PUT", "/v1/acl/policy", `{"Name": "prometheus", "Rules": "service_prefix \"\" { policy = \"read\" } node_prefix \"\" { policy = \"read\" } agent_prefix \"\" { policy = \"read\" }"}`)
	a.must(t, "PUT", "/v1/acl/token", `{"SecretID": "`+serviceToken+`", "Policies": [{"Name": "prometheus"}]}`)
	c := newCrowd(t, a, "web", 3)
	api := freePorts(1)[0]
	dir, config := writeConfig(t, "prometheus.yml", fmt.Sprintf(`
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
- job_name: web
  file_sd_configs: [{files: [web.json], refresh_interval: 1s}]
  relabel_configs:
  - {source_labels: [__meta_consul_service_id], target_label: instance}
  - {source_labels: [__meta_consul_service_metadata_rack], target_label: rack}
- job_name: everything
  file_sd_configs: [{files: [everything.json], refresh_interval: 1s}]
  relabel_configs:
  - {source_labels: [__meta_consul_service], regex: consul, action: keep}
  - {target_label: __address__, replacement: "127.0.0.1:%d"}
  metrics_path: /v1/agent/metrics
  params: {format: [prometheus]}
  authorization: {type: Bearer, credentials: %s}
`, a.ports["http"], serviceToken))
	discover := func(name string, settings map[string]any) *process {
		settings["server"], settings["refresh_interval"] = fmt.Sprintf("127.0.0.1:%d", a.ports["http"]), "1s"
		data, _ := json.Marshal(settings)
		_, path := writeConfig(t, "discovery.json", string(data))
		return start(t, name, nil, consulsd, path, dir+"/"+name+".json")
	}
	discoveries := []*process{
		discover("web", map[string]any{"services": []string{"web"}, "tags": []string{"v1"}, "token": serviceToken}),
		discover("everything", map[string]any{
			"filter": "ServiceName != nothing", "authorization": map[string]any{"type": "Bearer", "credentials": serviceToken},
		}),
	}
	start(t, "prometheus", nil, prometheus, "--config.file="+config, "--storage.tsdb.path="+dir+"/data", "--web.enable-lifecycle",
		fmt.Sprintf("--web.listen-address=127.0.0.1:%d", api))
	base := fmt.Sprintf("http://127.0.0.1:%d", api)

	type target struct {
		Discovered map[string]string `json:"discoveredLabels"`
		Labels     map[string]string
		Health     string
	}
	targets := func(job string) map[string]target {
		_, body, _ := request("GET", base+"/api/v1/targets?state=active", "")
		var answer struct {
			Data struct {
				ActiveTargets []target
			}
		}
		json.Unmarshal([]byte(body), &answer)
		of := map[string]target{}
		for _, one := range answer.Data.ActiveTargets {
			if one.Labels["job"] == job {
				of[one.Labels["instance"]] = one
			}
		}
		return of
	}
	query := func(expression string) string {
		_, body, _ := request("GET", base+"/api/v1/query?query="+url.QueryEscape(expression), "")
		var answer struct {
			Data struct {
				Result []struct{ Value [2]any }
			}
		}
		if json.Unmarshal([]byte(body), &answer); len(answer.Data.Result) != 1 {
			return ""
		}
		return fmt.Sprint(answer.Data.Result[0].Value[1])
	}

	eventually(t, 30*time.Second, "Prometheus is ready", func() bool { code, _, _ := request("GET", base+"/-/ready", ""); return code == 200 })
	c.register(1, 2, 3)
	eventually(t, 30*time.Second, "three targets", func() bool { return len(targets("web")) == 3 })
	got := targets("web")["web-2"]
	for label, want := range map[string]string{
		"__address__": fmt.Sprintf("127.0.1.2:%d", c.port), "__meta_consul_address": "127.0.0.1", "__meta_consul_dc": "dc1",
		"__meta_consul_health": "passing", "__meta_consul_node": "one", "__meta_consul_service": "web", "__meta_consul_service_address": "127.0.1.2",
		"__meta_consul_service_id": "web-2", "__meta_consul_service_metadata_rack": "2", "__meta_consul_service_port": fmt.Sprint(c.port),
		"__meta_consul_tags": ",v1,i2,", "__meta_consul_tagged_address_lan": "127.0.0.1",
	} {
		if got.Discovered[label] != want {
			t.Errorf("%s is %q, want %q", label, got.Discovered[label], want)
		}
	}
	if got.Labels["rack"] != "2" {
		t.Errorf("labels %v", got.Labels)
	}
	c.check(3, "fail")
	eventually(t, 30*time.Second, "a critical one says so", func() bool {
		return targets("web")["web-3"].Discovered["__meta_consul_health"] == "critical"
	})
	c.deregister(2)
	eventually(t, 30*time.Second, "two targets", func() bool { _, there := targets("web")["web-2"]; return !there && len(targets("web")) == 2 })

	// The agent's metrics: they are all taken, and some of them are those that dashboards look at.
	eventually(t, 30*time.Second, "the agent is scraped", func() bool { return query(`up{job="everything"}`) == "1" })
	eventually(t, 30*time.Second, "it leads", func() bool { return query(`consul_server_isLeader`) == "1" })
	eventually(t, 30*time.Second, "its services are counted", func() bool {
		return query(`consul_state_service_instances{datacenter="dc1"}`) == "3"
	})
	for _, d := range discoveries {
		if strings.Contains(d.output(), "ERROR") {
			t.Errorf("the discovery failed:\n%s", d.output())
		}
	}
}
