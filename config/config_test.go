package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"eboot"
)

const sample = "../deploy/eboot.yaml"

var compare = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })
var compareAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestDefaultIsValid(t *testing.T) {
	if err := Default().Check(); err != nil {
		t.Fatal(err)
	}
	got, err := Load("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got, compare, compareAddr); diff != "" {
		t.Errorf("nothing said (-Default +Load):\n%s", diff)
	}
}

// The sample is the manual: it shows every key, with its default, but for those of three servers
// that know each other by certificates, which nobody should do without.
func TestSampleIsDefaultAndSecure(t *testing.T) {
	got, err := Load(sample, nil)
	if err != nil {
		t.Fatal(err)
	}
	secure := Default()
	secure.Cluster.Name, secure.Cluster.Expect = "prod", 3
	secure.API.Bind = netip.MustParseAddrPort("0.0.0.0:4380")
	secure.Gossip.Seeds = []string{"boot1.example:4382", "boot2.example:4382", "boot3.example:4382"}
	secure.Gossip.KeyFile = "/etc/eboot/gossip.key"
	secure.TLS = TLS{CA: "/etc/eboot/ca.pem", Cert: "/etc/eboot/server.pem", Key: "/etc/eboot/server-key.pem"}
	if diff := cmp.Diff(secure, got, compare, compareAddr); diff != "" {
		t.Errorf("-wanted +sample:\n%s", diff)
	}
	if w := got.Warnings(); len(w) > 0 {
		t.Errorf("the sample is warned about: %q", w)
	}

	content, err := os.ReadFile(sample)
	if err != nil {
		t.Fatal(err)
	}
	l := &loader{config: Default(), table: newKeyTable(), origin: map[string]string{}}
	l.readYAML(sample, content)
	for _, k := range l.table.keys {
		if _, said := l.origin[k.path]; !said {
			t.Errorf("the sample does not show %s", k.path)
		}
	}
	if len(l.origin) != len(l.table.keys) {
		t.Errorf("the sample shows %d keys of %d", len(l.origin), len(l.table.keys))
	}
}

func write(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "e.yaml")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLoadFile(t *testing.T) {
	name := write(t, `
# a comment
data_dir: /srv/eboot
boot:
  bind: [10.0.0.1, "10.0.0.2"]
  tcp_ports: 0
  priority: {mode: ordered, order: [a, b], pace: 5ms}
  roots:
    - /opt/erlang
  limits:   # nothing said
api:
  bind: "[::1]:0"
  socket: '/run/eboot.sock'
  insecure: true
log: {format: json, level: debug}
`)
	got, err := Load(name, []string{"PATH=/bin", "EBOOT_ADDRESS=x", "EBOOT_TOKEN=x", "EBOOT_REQUIRE_ERL=1", "EBOOT_TEST_ANY=1",
		"EBOOT_SERVICE_HOST=10.0.0.1", "EBOOT_SERVICE_PORT_API=4380", "EBOOT_PORT=tcp://10.0.0.1:4380", "EBOOT_PORT_4380_TCP_ADDR=10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	wanted := Default()
	wanted.DataDir = "/srv/eboot"
	wanted.Boot.Bind = []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")}
	wanted.Boot.TCPPorts = PortRange{}
	wanted.Boot.Priority = Priority{Mode: PriorityOrdered, Order: []string{"a", "b"}, Pace: 5 * time.Millisecond}
	wanted.Boot.Roots = []string{"/opt/erlang"}
	wanted.API = API{Bind: netip.MustParseAddrPort("[::1]:0"), Socket: "/run/eboot.sock", Insecure: true}
	wanted.Log = Log{Level: "debug", Format: LogJSON}
	if diff := cmp.Diff(wanted, got, compare, compareAddr); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestEnvironmentWins(t *testing.T) {
	name := write(t, "data_dir: /from/file\nboot: {roots: [/from/file]}\n")
	got, err := Load(name, []string{
		"EBOOT_DATA_DIR=/from/environ", "EBOOT_BOOT_ROOTS=/a, /b", "EBOOT_BOOT_TCP_PORTS=5000",
		"EBOOT_CLUSTER_EXPECT=1", "EBOOT_API_BIND=", "EBOOT_API_SOCKET=/s", "EBOOT_BOOT_PRIORITY_ORDER=",
		"EBOOT_TLS_INSECURE=false", "EBOOT_PUBLISH_WAIT=1m",
	})
	if err != nil {
		t.Fatal(err)
	}
	wanted := Default()
	wanted.DataDir = "/from/environ"
	wanted.Boot.Roots = []string{"/a", "/b"}
	wanted.Boot.TCPPorts = PortRange{5000, 5000}
	wanted.API = API{Socket: "/s"}
	wanted.Publish.Wait = time.Minute
	if diff := cmp.Diff(wanted, got, compare, compareAddr); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// Every key can be set from a file and from the environment, to a value that
// is not its default. Whether the value is allowed is not asked here.
func TestEveryKeyCanBeSet(t *testing.T) {
	texts := map[string]string{
		"string": "other", "int": "7", "bool": "true", "time.Duration": "7ms", "netip.AddrPort": "1.2.3.4:5",
		"config.PortRange": "7-9", "config.PriorityMode": "ordered", "config.LogFormat": "json", "[]string": "x", "[]netip.Addr": "1.2.3.4",
	}
	for _, k := range newKeyTable().keys {
		kind := reflect.TypeFor[Config]().FieldByIndex(k.index).Type.String()
		text, known := texts[kind]
		if !known {
			t.Fatalf("%s: no text for a value of type %s", k.path, kind)
		}
		fromEnviron := &loader{config: Default(), table: newKeyTable(), origin: map[string]string{}}
		fromEnviron.readEnviron([]string{k.variable() + "=" + text})

		fromFile := &loader{config: Default(), table: newKeyTable(), origin: map[string]string{}}
		if strings.HasPrefix(kind, "[]") {
			text = "[" + text + "]"
		}
		document := strings.ReplaceAll(k.path, ".", ": {") + ": " + text + strings.Repeat("}", strings.Count(k.path, "."))
		fromFile.readYAML("f", []byte(document))

		for name, l := range map[string]*loader{"environment": fromEnviron, "file": fromFile} {
			if len(l.errs) > 0 {
				t.Errorf("%s from %s: %v", k.path, name, errors.Join(l.errs...))
			}
			if reflect.DeepEqual(l.config, Default()) {
				t.Errorf("%s from %s: nothing was set", k.path, name)
			}
			if l.origin[k.path] == "" {
				t.Errorf("%s from %s: origin is not known", k.path, name)
			}
		}
		if diff := cmp.Diff(fromFile.config, fromEnviron.config, compare, compareAddr); diff != "" {
			t.Errorf("%s (-file +environment):\n%s", k.path, diff)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	for _, c := range []struct {
		name, file string
		environ    []string
		want       []string
	}{
		{"unknown key", "boot:\n  tcp_port: 1\n", nil, []string{`e.yaml:2: "boot.tcp_port": unknown key; the nearest valid one is boot.tcp_ports`}},
		{"unknown section", "data_dir: /x\nboots: {}\n", nil, []string{`e.yaml:2: "boots": unknown key; the nearest valid one is boot`}},
		{"key of another section", "tcp_ports: 1\n", nil, []string{`the nearest valid one is boot.tcp_ports`}},
		{"dash and case", "Data-Dir: /x\n", nil, []string{`"Data-Dir": unknown key; the nearest valid one is data_dir`}},
		{"dotted key", "boot.bind: [1.2.3.4]\n", nil, []string{`"boot.bind": unknown key; the nearest valid one is boot.bind`}},
		{"twice", "data_dir: /x\nlog: {}\ndata_dir: /y\n", nil, []string{`e.yaml:3: "data_dir": stands twice, first at`, `e.yaml:1`}},
		{"section twice", "log: {level: info}\napi: {}\nlog: {format: json}\n", nil, []string{`e.yaml:3: "log": stands twice, first at`}},
		{"wrong type", "cluster:\n  expect: many\n", nil, []string{`e.yaml:2: cluster.expect: want a whole number, not "many"`}},
		{"list for text", "data_dir: [a]\n", nil, []string{`data_dir: want a text, not a list`}},
		{"text for list", "boot:\n  bind: 0.0.0.0\n", nil, []string{`e.yaml:2: boot.bind: want a list, each item an IP address such as 10.1.2.3, not "0.0.0.0"`}},
		{"text for section", "boot: 1\n", nil, []string{`e.yaml:1: boot: want keys and values, not "1"`}},
		{"section for text", "data_dir: {a: b}\n", nil, []string{`data_dir: want a text, not keys and values`}},
		{"null", "data_dir:\n", nil, []string{`data_dir: want a text, not nothing`}},
		{"list item", "boot:\n  roots:\n    - /a\n    - [b]\n", nil, []string{`e.yaml:4: boot.roots: want`}},
		{"whole file", "- a\n", nil, []string{`e.yaml:1: the file: want keys and values, not a list`}},
		{"alias", "data_dir: &a /x\n", nil, []string{`data_dir: want a text, not an anchor or alias`}},
		{"two documents", "data_dir: /x\n---\ndata_dir: /y\n", nil, []string{`a second YAML document`}},
		{"syntax", "boot: {\n", nil, []string{`e.yaml:1: `}},
		{"not UTF-8", "data_dir: /\xff\n", nil, []string{`is not valid UTF-8`}},
		{"bool", "tls: {insecure: maybe}\n", nil, []string{`want true or false, not "maybe"`}},
		{"duration", "publish: {wait: 30}\n", nil, []string{`want a duration such as 30ms or 1m, not "30"`}},
		{"ports", "boot: {tcp_ports: 9-1}\n", nil, []string{`boot.tcp_ports: want ports such as`}},
		{"several at once", "a: 1\nb: 2\n", []string{"EBOOT_C=3"}, []string{`"a": unknown`, `"b": unknown`, `EBOOT_C: unknown`}},
		{"unknown variable", "", []string{"EBOOT_BOOT_TCP_PORT=1"}, []string{`EBOOT_BOOT_TCP_PORT: unknown variable; the nearest valid one is EBOOT_BOOT_TCP_PORTS`}},
		{"section as a variable", "", []string{"EBOOT_BOOT=1"}, []string{`EBOOT_BOOT: unknown variable`}},
		{"variable of the wrong type", "", []string{"EBOOT_CLUSTER_EXPECT=x"}, []string{`EBOOT_CLUSTER_EXPECT: want a whole number, not "x"`}},
		{"variable with a wrong item", "", []string{"EBOOT_BOOT_BIND=1.2.3.4,x"}, []string{`EBOOT_BOOT_BIND: want a list, each item an IP address such as 10.1.2.3, separated by commas; not "x"`}},
		{"check names the line", "boot:\n  bind: ['::1']\n", nil, []string{`e.yaml:2: boot.bind: "::1": EBOOT works over IPv4 only`}},
		{"check names the variable", "boot:\n  bind: [1.2.3.4]\n", []string{"EBOOT_BOOT_BIND=::1"}, []string{`EBOOT_BOOT_BIND: boot.bind: "::1"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, c.file), c.environ)
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("error %v, want ErrInvalid", err)
			}
			for _, text := range c.want {
				if !strings.Contains(err.Error(), text) {
					t.Errorf("error:\n%v\nlacks:\n%s", err, text)
				}
			}
		})
	}
}

func TestLoadUnreadable(t *testing.T) {
	if _, err := Load(filepath.Join(t.TempDir(), "none"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Load(write(t, strings.Repeat("#", maxFileSize+1)), nil); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("long file: %v", err)
	}
}

func TestCheck(t *testing.T) {
	addr := netip.MustParseAddr
	certificates := TLS{CA: "/ca", Cert: "/c", Key: "/k"}
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // key and part of the text; empty: valid
	}{
		{"any port", func(c *Config) { c.Boot.TCPPorts = PortRange{} }, ""},
		{"socket only", func(c *Config) { c.API = API{Socket: "/s"} }, ""},
		{"loopback six", func(c *Config) { c.API.Bind, c.API.Insecure = netip.MustParseAddrPort("[::1]:80"), true }, ""},
		{"api on a network, with certificates", func(c *Config) {
			c.API.Bind, c.TLS, c.Gossip.KeyFile = netip.MustParseAddrPort("0.0.0.0:4380"), certificates, "/g"
		}, ""},
		{"api by default, without", func(c *Config) {}, ""},
		{"relative data_dir", func(c *Config) { c.DataDir = "x" }, "data_dir: want an absolute"},
		{"empty data_dir", func(c *Config) { c.DataDir = "" }, "data_dir: want an absolute"},
		{"name", func(c *Config) { c.Cluster.Name = "a b" }, "cluster.name: "},
		{"no bind", func(c *Config) { c.Boot.Bind = nil }, "boot.bind: want at least one"},
		{"bind six", func(c *Config) { c.Boot.Bind = []netip.Addr{addr("::")} }, "IPv4 only"},
		{"bind mapped", func(c *Config) { c.Boot.Bind = []netip.Addr{addr("::ffff:1.2.3.4")} }, "IPv4 only"},
		{"bind zero", func(c *Config) { c.Boot.Bind = []netip.Addr{{}} }, "IPv4 only"},
		{"bind twice", func(c *Config) { c.Boot.Bind = []netip.Addr{addr("1.2.3.4"), addr("1.2.3.4")} }, "stands twice"},
		{"bind all and one", func(c *Config) { c.Boot.Bind = []netip.Addr{addr("0.0.0.0"), addr("1.2.3.4")} }, "must stand alone"},
		{"bind multicast", func(c *Config) { c.Boot.Bind = []netip.Addr{addr("224.0.0.1")} }, "an address of this host"},
		{"ports reversed", func(c *Config) { c.Boot.TCPPorts = PortRange{9, 1} }, "boot.tcp_ports: the range ends"},
		{"ports from 0", func(c *Config) { c.Boot.TCPPorts = PortRange{0, 1} }, "boot.tcp_ports: port 0"},
		{"mode", func(c *Config) { c.Boot.Priority.Mode = "x" }, "boot.priority.mode: want spread or ordered"},
		{"order without ordered", func(c *Config) { c.Boot.Priority.Order = []string{"a"} }, "boot.priority.order: is used only"},
		{"ordered without order", func(c *Config) { c.Boot.Priority.Mode = PriorityOrdered }, "boot.priority.order: mode ordered wants"},
		{"pace 0", func(c *Config) { c.Boot.Priority.Pace = 0 }, "boot.priority.pace: want 1ms"},
		{"pace too long", func(c *Config) { c.Boot.Priority.Pace = answersEnd }, "boot.priority.pace: want 1ms"},
		{"no roots", func(c *Config) { c.Boot.Roots = nil }, "boot.roots: want 1 to"},
		{"relative root", func(c *Config) { c.Boot.Roots = []string{"opt"} }, "boot.roots: "},
		{"unclean root", func(c *Config) { c.Boot.Roots = []string{"/opt/"} }, "boot.roots: "},
		{"whole root", func(c *Config) { c.Boot.Roots = []string{"/"} }, "not / itself"},
		{"root twice", func(c *Config) { c.Boot.Roots = []string{"/a", "/a"} }, "stands twice"},
		{"no connections", func(c *Config) { c.Boot.Limits.Connections = 0 }, "boot.limits.connections: want 1"},
		{"per address more than all", func(c *Config) { c.Boot.Limits.Connections = 3 }, "boot.limits.connections_per_address: want 1 to boot.limits.connections (3)"},
		{"api open", func(c *Config) { c.API.Bind = netip.MustParseAddrPort("0.0.0.0:4380") }, "api.bind: 0.0.0.0:4380: on a network the API wants certificates"},
		{"api open and insecure", func(c *Config) { c.API.Bind, c.API.Insecure = netip.MustParseAddrPort("0.0.0.0:4380"), true }, "api.bind: 0.0.0.0:4380: on a network the API wants certificates"},
		{"api on loopback without certificates", func(c *Config) { c.API.Bind = netip.MustParseAddrPort("127.0.0.1:4370") }, "api.bind: 127.0.0.1:4370: without certificates"},
		{"api insecure and certificates", func(c *Config) { c.API.Insecure, c.TLS = true, certificates }, "api.insecure: has no effect with certificates"},
		{"api insecure nowhere", func(c *Config) { c.API.Insecure, c.API.Bind = true, netip.AddrPort{} }, "api.insecure: has no effect without"},
		{"api nowhere", func(c *Config) { c.API = API{} }, "api.socket: want a socket"},
		{"api on the default address only, which is not opened", func(c *Config) { c.API.Socket = "" }, "api.socket: want a socket"},
		{"no watch", func(c *Config) { c.Boot.Watch = 0 }, ""},
		{"watch too often", func(c *Config) { c.Boot.Watch = 9 * time.Second }, "boot.watch: want 0s (nobody looks), or 10s to 24h0m0s, not 9s"},
		{"watch negative", func(c *Config) { c.Boot.Watch = -time.Second }, "boot.watch: want 0s"},
		{"watch hardly", func(c *Config) { c.Boot.Watch = 25 * time.Hour }, "boot.watch: want 0s"},
		{"max_stale", func(c *Config) { c.Whitelist.MaxStale = 5 * time.Second }, ""},
		{"max_stale in a slow network", func(c *Config) { c.Cluster.RaftMultiplier = 5; c.Whitelist.MaxStale = 24 * time.Second }, "whitelist.max_stale: want 0s (no bound), or 25s (5s for each"},
		{"max_stale too short", func(c *Config) { c.Whitelist.MaxStale = time.Second }, "whitelist.max_stale: want 0s (no bound), or 5s"},
		{"max_stale too long", func(c *Config) { c.Whitelist.MaxStale = 721 * time.Hour }, "to 720h0m0s, not 721h0m0s"},
		{"relative socket", func(c *Config) { c.API.Socket = "s" }, "api.socket: want an absolute"},
		{"long socket", func(c *Config) { c.API.Socket = "/" + strings.Repeat("s", maxSocketPath) }, "api.socket: longer than"},
		{"wait", func(c *Config) { c.Publish.Wait = -1 }, "publish.wait: want 0s"},
		{"trusted keys", func(c *Config) { c.Trust = Trust{Keys: []string{"/k1", "/k2"}, Threshold: 2} }, ""},
		{"threshold 0", func(c *Config) { c.Trust = Trust{Keys: []string{"/k"}} }, "trust.threshold: want 1 to the number of trust.keys (1), not 0"},
		{"threshold too high", func(c *Config) { c.Trust = Trust{Keys: []string{"/k"}, Threshold: 2} }, "trust.threshold: want 1 to"},
		{"threshold of nothing", func(c *Config) { c.Trust.Threshold = 2 }, "trust.threshold: has no effect"},
		{"relative key", func(c *Config) { c.Trust.Keys = []string{"k.pub"} }, "trust.keys: want absolute"},
		{"key twice", func(c *Config) { c.Trust.Keys = []string{"/k", "/k"} }, "trust.keys: \"/k\": stands twice"},
		{"level", func(c *Config) { c.Log.Level = "loud" }, "log.level: want trace"},
		{"format", func(c *Config) { c.Log.Format = "xml" }, "log.format: want text or json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := Default()
			c.change(&config)
			expectError(t, config.Check(), c.want)
		})
	}
}

// expectError wants an eboot.ErrInvalid with text in it; "": none.
func expectError(t *testing.T, err error, text string) {
	t.Helper()
	if text == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if !errors.Is(err, eboot.ErrInvalid) || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want ErrInvalid with %q", err, text)
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"a", "", 1}, {"", "ab", 2}, {"bind", "bind", 0}, {"bnid", "bind", 2}, {"tcp_port", "tcp_ports", 1}, {"kitten", "sitting", 3}} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("editDistance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
	long := strings.Repeat("a", 1000)
	if got := editDistance(long, long+"b"); got != 0 {
		t.Errorf("long names: %d; they are cut", got)
	}
}

func TestPortRangeText(t *testing.T) {
	for text, want := range map[string]PortRange{"0": {}, "4368": {4368, 4368}, "4368-4399": {4368, 4399}, "1-65535": {1, 65535}} {
		var p PortRange
		if err := p.UnmarshalText([]byte(text)); err != nil || p != want {
			t.Errorf("%q: %v, %v", text, p, err)
		}
		if back, err := p.MarshalText(); err != nil || string(back) != text {
			t.Errorf("%v: %q, %v", p, back, err)
		}
	}
	for _, text := range []string{"", "-", "1-", "-1", "0-5", "5-4", "65536", "1-2-3", " 1", "+1", "0x1"} {
		var p PortRange
		if err := p.UnmarshalText([]byte(text)); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%q: %v, %v; want ErrInvalid", text, p, err)
		}
	}
}

// Found by FuzzConfig: a root with a line break in it was taken from the environment, and from a
// quoted text of a file.
func TestTextsHaveNoControlCharacters(t *testing.T) {
	for name, load := range map[string]func() (Config, error){
		"from a variable": func() (Config, error) { return parse("f", nil, []string{"EBOOT_BOOT_ROOTS=/\n0"}) },
		"from a file":     func() (Config, error) { return parse("f", []byte(`boot: {roots: ["/a\nb"]}`), nil) },
		"NUL":             func() (Config, error) { return parse("f", []byte(`data_dir: "/a\0"`), nil) },
		"escape":          func() (Config, error) { return parse("f", nil, []string{"EBOOT_CLUSTER_NAME=a\x1b[2J"}) },
	} {
		if c, err := load(); !errors.Is(err, eboot.ErrInvalid) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	if _, err := parse("f", nil, []string{"EBOOT_BOOT_ROOTS=/a,\n/b"}); err != nil {
		t.Errorf("space around the items of a list: %v", err)
	}
}

// Whatever a file and one variable say, the answer is a Config that is valid and
// says the same when it is written and read again, or ErrInvalid.
func FuzzConfig(f *testing.F) {
	content, err := os.ReadFile(sample)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(content, "EBOOT_BOOT_TCP_PORTS=1-2")
	f.Add([]byte("boot: {bind: [10.0.0.1], tcp_ports: 0}\n"), "EBOOT_BOOT_ROOTS=/a,/b")
	f.Add([]byte("a: &a [*a]\n<<: *a\n? b\n: c\n"), "EBOOT_X=")
	f.Add([]byte("data_dir: |\n  /x\n---\n...\n"), "EBOOT_")
	f.Add([]byte("log: !!map {level: \"in\\x66o\"}\n"), "EBOOT_API_BIND=[::1]:0")
	f.Add([]byte("cluster: {expect: 3, raft_multiplier: 5}\ngossip: {seeds: ['a:4382', '[::1]:1']}\ntls: {insecure: true}\n"), "EBOOT_PEER_ADVERTISE=b:1")
	f.Add([]byte("publish:\n  wait: 1h # long\ntls:\n"), "=")
	f.Fuzz(func(t *testing.T, content []byte, variable string) {
		if len(content) > 1<<14 {
			return
		}
		c, err := parse("f.yaml", content, []string{variable})
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) {
				t.Fatalf("error %v does not wrap ErrInvalid", err)
			}
			return
		}
		if err := c.Check(); err != nil {
			t.Fatalf("loaded, but: %v", err)
		}
		again, err := yaml.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parse("again.yaml", again, nil)
		if err != nil {
			t.Fatalf("%v, of\n%s", err, again)
		}
		if diff := cmp.Diff(c, back, compare, compareAddr); diff != "" {
			t.Fatalf("written and read again (-first +again):\n%s\n%s", diff, again)
		}
	})
}
