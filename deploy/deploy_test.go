// Package deploy_test holds the files of deploy/ against the program: every
// configuration loads, and the unit, the image and the compose file say what they promise.
package deploy_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/goccy/go-yaml"

	"eboot/config"
)

func read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// yamlBlock is a configuration in a chapter of the manual.
var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// Every configuration that is shown to an operator is one that the program takes.
func TestConfigurationsLoad(t *testing.T) {
	files, err := filepath.Glob("*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	files = slices.DeleteFunc(files, func(f string) bool { return f == "compose.yaml" })
	if !slices.Contains(files, "eboot.yaml") {
		t.Fatalf("no eboot.yaml among %q", files)
	}
	for i, block := range yamlBlock.FindAllStringSubmatch(read(t, "../docs/MANUAL.md"), -1) {
		name := filepath.Join(t.TempDir(), fmt.Sprintf("manual-%d.yaml", i+1))
		if err := os.WriteFile(name, []byte(block[1]), 0o600); err != nil {
			t.Fatal(err)
		}
		files = append(files, name)
	}
	if len(files) < 2 {
		t.Error("no configuration in the manual: the pattern finds nothing")
	}
	for _, f := range files {
		if _, err := config.Load(f, nil); err != nil {
			t.Errorf("%s: %v\n%s", f, err, read(t, f))
		}
	}
}

// service is the unit's values by key, in order.
func service(t *testing.T) map[string][]string {
	t.Helper()
	options, err := unit.DeserializeOptions(strings.NewReader(read(t, "eboot.service")))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{}
	for _, o := range options {
		values[o.Section+"."+o.Name] = append(values[o.Section+"."+o.Name], o.Value)
	}
	return values
}

func TestUnit(t *testing.T) {
	s := service(t)
	for key, want := range map[string]string{
		"Unit.StartLimitIntervalSec": "0", "Service.Type": "notify", "Service.WatchdogSec": "15", "Service.Restart": "always",
		"Service.DynamicUser": "yes", "Service.StateDirectory": "eboot", "Service.StateDirectoryMode": "0700",
		"Service.RuntimeDirectory": "eboot", "Service.RuntimeDirectoryMode": "0750", "Service.RuntimeDirectoryPreserve": "restart", "Service.CapabilityBoundingSet": "", "Service.LimitCORE": "1",
		"Service.RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX AF_NETLINK", "Service.ExecStart": "/usr/local/bin/eboot agent --config /etc/eboot/eboot.yaml",
	} {
		if got := strings.Join(s[key], "|"); got != want || len(s[key]) == 0 {
			t.Errorf("%s=%s, want %s", key, got, want)
		}
	}
	if got := config.Default().DataDir; got != "/var/lib/"+s["Service.StateDirectory"][0] {
		t.Errorf("the default data_dir is %s, which is not the unit's StateDirectory", got)
	}
	if _, there := s["Service.ProcSubset"]; there {
		t.Error("ProcSubset= hides net.core.somaxconn and the owners of ports")
	}
	if _, there := s["Service.SystemCallFilter"]; !there {
		t.Error("no SystemCallFilter=")
	}
	for key, values := range s {
		if len(values) > 1 && !slices.Contains([]string{"Service.SystemCallFilter", "Service.LoadCredential", "Service.Environment"}, key) {
			t.Errorf("%s stands %d times", key, len(values))
		}
	}
}

// The unit as it is written is that of a server with certificates: every file that is
// handed over is one that a variable of the configuration names, and the other way round.
func TestUnitHandsSecretsOver(t *testing.T) {
	s := service(t)
	// What systemd does, with a directory of the test in place of %d and /etc/eboot.
	credentials := t.TempDir()
	handed := map[string]bool{}
	for _, line := range s["Service.LoadCredential"] {
		id, from, found := strings.Cut(line, ":")
		if !found || filepath.Dir(from) != "/etc/eboot" {
			t.Errorf("LoadCredential=%s, want ID:/etc/eboot/FILE", line)
		}
		handed[filepath.Join(credentials, id)] = true
	}
	environ := []string{"EBOOT_CLUSTER_EXPECT=3", "EBOOT_GOSSIP_SEEDS=boot1.example:4382,boot2.example:4382,boot3.example:4382"}
	for _, line := range s["Service.Environment"] {
		if !strings.Contains(line, "=%d/") {
			t.Errorf("Environment=%s: nothing but the path of a credential stands in a variable", line)
		}
		environ = append(environ, strings.ReplaceAll(line, "%d", credentials))
	}
	c, err := config.Load("", environ)
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, path := range []string{c.TLS.CA, c.TLS.Cert, c.TLS.Key, c.Gossip.KeyFile} {
		used[path] = true
	}
	if len(used) != 4 || !maps.Equal(used, handed) {
		t.Errorf("credentials %v, and the configuration wants %v", handed, used)
	}
	if w := c.Warnings(); c.TLS.Insecure || len(w) > 0 {
		t.Errorf("the setup that is shown is warned of: %q", w)
	}
}

// systemd itself finds nothing unknown in the unit, and rates what it may do.
func TestUnitBySystemd(t *testing.T) {
	skip := t.Skipf
	if os.Getenv("EBOOT_REQUIRE_ERL") == "1" {
		skip = t.Fatalf
	}
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		skip("systemd-analyze is not installed here: %v", err)
	}
	output, err := exec.Command(program, "security", "--offline=true", "eboot.service").CombinedOutput()
	if err != nil && bytes.Contains(output, []byte("offline")) {
		skip("this systemd-analyze does not rate files: %s", output)
	}
	if err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	overall := regexp.MustCompile(`Overall exposure level for eboot.service: ([0-9.]+)`).FindSubmatch(output)
	if overall == nil {
		t.Fatalf("no rating in:\n%s", output)
	}
	if level, err := strconv.ParseFloat(string(overall[1]), 64); err != nil || level > 1.5 {
		t.Errorf("exposure level %s (%v), want at most 1.5:\n%s", overall[1], err, output)
	}

	// verify wants the program of ExecStart to be there, and reports unknown keys without failing.
	name := filepath.Join(t.TempDir(), "eboot.service")
	text := strings.Replace(read(t, "eboot.service"), "ExecStart=/usr/local/bin/eboot", "ExecStart="+program, 1)
	for _, c := range []struct {
		text  string
		wrong bool
	}{{text, false}, {strings.Replace(text, "LockPersonality=", "LockPersonal=", 1), true}} {
		if err := os.WriteFile(name, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		var exit *exec.ExitError
		output, err := exec.Command(program, "verify", name).CombinedOutput()
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if wrong := bytes.Contains(output, []byte(name)); wrong != c.wrong {
			t.Errorf("systemd-analyze verify complains: %v, want %v (%v):\n%s", wrong, c.wrong, err, output)
		}
	}
}

// composeService is what of a service in compose.yaml is looked at.
type composeService struct {
	Environment     map[string]any `yaml:"environment"`
	StopGracePeriod string         `yaml:"stop_grace_period"`
	ReadOnly        bool           `yaml:"read_only"`
	CapDrop         []string       `yaml:"cap_drop"`
	Volumes         []string       `yaml:"volumes"`
	Build           struct{ Context, Dockerfile string }
	Healthcheck     struct{ Test []string }
	Networks        map[string]struct {
		Address string `yaml:"ipv4_address"`
	}
}

func TestCompose(t *testing.T) {
	var compose struct {
		Services map[string]composeService
		Networks map[string]struct {
			IPAM struct {
				Config []struct{ Subnet string }
			}
		}
		Volumes map[string]any
	}
	if err := yaml.Unmarshal([]byte(read(t, "compose.yaml")), &compose); err != nil {
		t.Fatal(err)
	}
	if len(compose.Services) != 3 {
		t.Fatalf("%d services, want 3", len(compose.Services))
	}
	network, there := compose.Networks["boot"]
	if !there || len(network.IPAM.Config) != 1 {
		t.Fatalf("networks %v", compose.Networks)
	}
	subnet := netip.MustParsePrefix(network.IPAM.Config[0].Subnet)
	if _, err := os.Stat("Dockerfile"); err != nil {
		t.Error(err)
	}
	grace := unitSeconds(t, "TimeoutStopSec")

	var addresses []string
	for name, s := range compose.Services {
		address := s.Networks["boot"].Address
		addresses = append(addresses, address)
		if a, err := netip.ParseAddr(address); err != nil || !subnet.Contains(a) {
			t.Errorf("%s: address %q is not in %s", name, address, subnet)
		}
		var environ []string
		for key, value := range s.Environment {
			environ = append(environ, fmt.Sprintf("%s=%v", key, value))
		}
		c, err := config.Load("", environ)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !c.Clustered() || c.Cluster.Expect != 3 || len(c.Gossip.Seeds) != 3 {
			t.Errorf("%s: expects %d servers, seeds %q", name, c.Cluster.Expect, c.Gossip.Seeds)
		}
		if want := netip.AddrPortFrom(netip.MustParseAddr(address), c.Peer.Bind.Port()).String(); c.Peer.Advertise != want {
			t.Errorf("%s: peer.advertise %s, want %s", name, c.Peer.Advertise, want)
		}
		if want := netip.AddrPortFrom(netip.MustParseAddr(address), c.Gossip.Bind.Port()).String(); c.Gossip.Advertise != want || !slices.Contains(c.Gossip.Seeds, want) {
			t.Errorf("%s: gossip.advertise %s, want %s, which is a seed", name, c.Gossip.Advertise, want)
		}
		if got := strings.Join(s.Healthcheck.Test, " "); got != "CMD /eboot cluster ready" {
			t.Errorf("%s: healthcheck %q", name, got)
		}
		if got, err := time.ParseDuration(s.StopGracePeriod); err != nil || got != grace {
			t.Errorf("%s: stop_grace_period %q (%v); the unit gives %s", name, s.StopGracePeriod, err, grace)
		}
		if want := name + ":" + c.DataDir; !slices.Equal(s.Volumes, []string{want}) {
			t.Errorf("%s: volumes %q, want %s", name, s.Volumes, want)
		}
		if _, there := compose.Volumes[name]; !there {
			t.Errorf("%s: its volume is not declared", name)
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || s.Build.Dockerfile != "deploy/Dockerfile" || s.Build.Context != ".." {
			t.Errorf("%s: not as it was meant: %+v", name, s)
		}
	}
	slices.Sort(addresses)
	if len(slices.Compact(addresses)) != 3 {
		t.Errorf("addresses %q are not distinct", addresses)
	}
}

func unitSeconds(t *testing.T, key string) time.Duration {
	t.Helper()
	n, err := strconv.Atoi(strings.Join(service(t)["Service."+key], ""))
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return time.Duration(n) * time.Second
}

// The image is built as `make build` builds, by the Go that go.mod asks for, and
// holds the program alone, under a user without rights.
func TestDockerfile(t *testing.T) {
	text := read(t, "Dockerfile")
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindStringSubmatch(read(t, "../go.mod"))
	if version == nil || !strings.Contains(text, "FROM golang:"+version[1]+" AS build\n") {
		t.Errorf("the image is not built by Go %v of go.mod", version)
	}
	makefile := read(t, "../Makefile")
	for _, match := range regexp.MustCompile(`(?im)^\s*(ARG|ENV)\s+(.*)$`).FindAllStringSubmatch(text, -1) {
		if match[2] != "VERSION=development" {
			t.Errorf("%s: what is given to a build stays in its layers; the version alone is", strings.TrimSpace(match[0]))
		}
	}
	ignored := strings.Split(read(t, "Dockerfile.dockerignore"), "\n")
	for _, secret := range []string{"secrets", "**/*.key", "**/*-key.pem"} { // as eboot tls and eboot keygen name them
		if !slices.Contains(ignored, secret) {
			t.Errorf("%s would be copied into a layer of the build", secret)
		}
	}
	for _, flag := range []string{"CGO_ENABLED=0", "-trimpath", "-tags=hashicorpmetrics", "-buildvcs=false", "-X main.version="} {
		if !strings.Contains(text, flag) || !strings.Contains(makefile, flag) {
			t.Errorf("%s is not in both the Dockerfile and the Makefile", flag)
		}
	}
	_, final, found := strings.Cut(text, "\nFROM scratch\n")
	if !found || strings.Contains(final, "\nFROM ") {
		t.Fatal("the last stage is not FROM scratch")
	}
	settings := config.Default()
	for _, line := range []string{
		"USER 65532:65532", "VOLUME " + settings.DataDir, `ENTRYPOINT ["/eboot"]`, `CMD ["agent"]`, "COPY --from=build --chown=65532:65532 /out/data " + settings.DataDir,
		fmt.Sprintf("EXPOSE 4368/udp %d-%d/tcp %d/udp", settings.Boot.TCPPorts.First, settings.Boot.TCPPorts.Last, settings.Gossip.Bind.Port()),
	} {
		if !strings.Contains(final, line+"\n") {
			t.Errorf("the last stage lacks %s", line)
		}
	}
	if p := settings.Peer.Bind.Port(); p < settings.Boot.TCPPorts.First || p > settings.Boot.TCPPorts.Last {
		t.Errorf("the peer port %d is not exposed", p)
	}
}
