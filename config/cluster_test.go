package config

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"eboot"
)

// three is one of three servers that found a cluster together.
func three() Config {
	c := Default()
	c.Cluster.Expect = 3
	c.Gossip.Seeds = []string{"10.0.0.1:4382", "boot2.example:4382"}
	c.TLS.Insecure = true
	return c
}

// secure is three with certificates.
func secure() Config {
	c := three()
	c.TLS = TLS{CA: "/etc/eboot/ca.pem", Cert: "/etc/eboot/boot1.pem", Key: "/etc/eboot/boot1-key.pem"}
	c.Gossip.KeyFile = "/etc/eboot/gossip.key"
	return c
}

// joining is a server that only ever joins.
func joining() Config {
	c := three()
	c.Cluster.Expect = 0
	return c
}

func TestCheckCluster(t *testing.T) {
	port := netip.MustParseAddrPort
	for _, c := range []struct {
		name   string
		base   func() Config
		change func(*Config)
		want   string // key and part of the text; empty: valid
	}{
		{"three", three, func(*Config) {}, ""},
		{"two", three, func(c *Config) { c.Cluster.Expect = 2 }, ""},
		{"without seeds", three, func(c *Config) { c.Gossip.Seeds = nil }, ""},
		{"joining", joining, func(*Config) {}, ""},
		{"one that others may join", Default, func(c *Config) { c.TLS.Insecure = true }, ""},
		{"that one at another port", Default, func(c *Config) { c.TLS.Insecure = true; c.Peer.Bind = port("10.0.0.1:9") }, ""},
		{"everything", three, func(c *Config) {
			c.Cluster.RaftMultiplier = 10
			c.Peer = Peer{Bind: port("[::]:0"), Advertise: "boot1:4381"}
			c.Gossip.Bind, c.Gossip.Advertise, c.Gossip.KeyFile = port("10.0.0.1:0"), "[fd00::1]:4382", "/etc/eboot/key"
		}, ""},
		{"same port of two addresses", three, func(c *Config) { c.Peer.Bind = port("10.0.0.1:4382"); c.Gossip.Bind = port("10.0.0.2:4382") }, ""},

		{"expect 0", Default, func(c *Config) { c.Cluster.Expect = 0 }, "cluster.expect: 0 only ever joins"},
		{"expect 0, insecure", Default, func(c *Config) { c.Cluster.Expect = 0; c.TLS.Insecure = true }, "cluster.expect: 0 only ever joins"},
		{"expect -1", Default, func(c *Config) { c.Cluster.Expect = -1 }, "cluster.expect: want 0 to 9"},
		{"expect 10", three, func(c *Config) { c.Cluster.Expect = 10 }, "cluster.expect: want 0 to 9"},
		{"expect 1 with seeds", three, func(c *Config) { c.Cluster.Expect = 1 }, "contradicts gossip.seeds"},
		{"multiplier 0", Default, func(c *Config) { c.Cluster.RaftMultiplier = 0 }, "cluster.raft_multiplier: want 1 to 10"},
		{"multiplier 11", three, func(c *Config) { c.Cluster.RaftMultiplier = 11 }, "cluster.raft_multiplier: want 1 to 10"},
		{"bad seed", joining, func(c *Config) { c.Gossip.Seeds = []string{"a"} }, `gossip.seeds: "a": want HOST:PORT`},
		{"seed twice", joining, func(c *Config) { c.Gossip.Seeds = []string{"a:1", "a:1"} }, `gossip.seeds: "a:1": stands twice`},
		{"many seeds", joining, func(c *Config) { c.Gossip.Seeds = slices.Repeat([]string{"a:1"}, 65) }, "gossip.seeds: want at most 64"},
		{"bad peer.advertise", three, func(c *Config) { c.Peer.Advertise = ":1" }, `peer.advertise: ":1": want HOST:PORT`},
		{"peer.advertise everywhere", three, func(c *Config) { c.Peer.Advertise = "0.0.0.0:1" }, `peer.advertise: "0.0.0.0:1": want HOST:PORT that`},
		{"bad gossip.advertise", three, func(c *Config) { c.Gossip.Advertise = "a:0" }, `gossip.advertise: "a:0": want HOST:PORT`},
		{"peer nowhere", three, func(c *Config) { c.Peer.Bind = netip.AddrPort{} }, "peer.bind: want ADDRESS:PORT"},
		{"gossip nowhere", three, func(c *Config) { c.Gossip.Bind = netip.AddrPort{} }, "gossip.bind: want ADDRESS:PORT"},
		{"gossip by multicast", three, func(c *Config) { c.Gossip.Bind = port("224.0.0.1:1") }, "gossip.bind: want ADDRESS:PORT"},
		{"one port for both", three, func(c *Config) { c.Gossip.Bind = port("10.0.0.1:4381") }, "gossip.bind: 10.0.0.1:4381: peer.bind"},
		{"port of the API", three, func(c *Config) { c.Peer.Bind, c.API.Insecure = port("0.0.0.0:4380"), true }, "peer.bind: 0.0.0.0:4380: api.bind"},
		{"gossip at the port of the API", three, func(c *Config) { c.Gossip.Bind, c.API.Insecure = port("127.0.0.1:4380"), true }, "gossip.bind: 127.0.0.1:4380: api.bind"},
		{"relative key_file", three, func(c *Config) { c.Gossip.KeyFile = "key" }, "gossip.key_file: want an absolute path"},

		{"expect without insecure", three, func(c *Config) { c.TLS.Insecure = false }, "cluster.expect: 3: several servers want certificates (tls.ca, tls.cert, tls.key; `eboot tls` makes them), or tls.insecure: true"},
		{"seeds without insecure", joining, func(c *Config) { c.TLS.Insecure = false }, "gossip.seeds: several servers want certificates"},
		{"with certificates", secure, func(*Config) {}, ""},
		{"one with certificates", Default, func(c *Config) { c.TLS, c.Gossip.KeyFile = secure().TLS, "/k" }, ""},
		{"without tls.ca", secure, func(c *Config) { c.TLS.CA = "" }, "tls.ca: is missing: ca, cert and key belong together"},
		{"without tls.cert", secure, func(c *Config) { c.TLS.Cert = "" }, "tls.cert: is missing"},
		{"without tls.key", secure, func(c *Config) { c.TLS.Key = "" }, "tls.key: is missing"},
		{"relative tls.key", secure, func(c *Config) { c.TLS.Key = "k" }, "tls.key: want an absolute path"},
		{"certificates and insecure", secure, func(c *Config) { c.TLS.Insecure = true }, "tls.insecure: true contradicts the certificates"},
		{"certificates without a gossip key", secure, func(c *Config) { c.Gossip.KeyFile = "" }, "gossip.key_file: with certificates gossip is encrypted, too: `eboot keygen gossip FILE`"},

		{"alone: peer.bind", Default, func(c *Config) { c.Peer.Bind = port("1.2.3.4:1") }, "peer.bind: has no effect on a server alone"},
		{"alone: peer.advertise", Default, func(c *Config) { c.Peer.Advertise = "a:1" }, "peer.advertise: has no effect on a server alone"},
		{"alone: gossip.bind", Default, func(c *Config) { c.Gossip.Bind = port("1.2.3.4:1") }, "gossip.bind: has no effect on a server alone"},
		{"alone: gossip.advertise", Default, func(c *Config) { c.Gossip.Advertise = "a:1" }, "gossip.advertise: has no effect on a server alone"},
		{"alone: gossip.key_file", Default, func(c *Config) { c.Gossip.KeyFile = "/k" }, "gossip.key_file: has no effect on a server alone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := c.base()
			c.change(&config)
			expectError(t, config.Check(), c.want)
		})
	}
}

func TestExpectFollowsSeeds(t *testing.T) {
	name := write(t, "gossip: {seeds: ['a:1']}\ntls: {insecure: true}\n")
	c, err := Load(name, nil)
	if err != nil || c.Cluster.Expect != 0 {
		t.Errorf("seeds alone: expect %d, %v; want 0", c.Cluster.Expect, err)
	}
	_, err = Load(name, []string{"EBOOT_CLUSTER_EXPECT=1"})
	if err == nil || !strings.Contains(err.Error(), "EBOOT_CLUSTER_EXPECT: cluster.expect: 1 founds") {
		t.Errorf("seeds and expect 1: %v", err)
	}
	_, err = Load(name, []string{"EBOOT_TLS_INSECURE=false"})
	if err == nil || !strings.Contains(err.Error(), "e.yaml:1: gossip.seeds: several servers want certificates") || strings.Contains(err.Error(), "cluster.expect: ") {
		t.Errorf("seeds that are not insecure: %v; want a complaint about gossip.seeds only", err)
	}
}

func TestClusteredAndWarnings(t *testing.T) {
	const insecure, two, alone = "tls.insecure: ", "cluster.expect is 2: when either server is lost nothing can be written", "no gossip.seeds"
	for _, c := range []struct {
		name      string
		change    func(*Config)
		clustered bool
		warnings  []string
	}{
		{"alone", func(*Config) {}, false, nil},
		{"alone and open", func(c *Config) { c.TLS.Insecure = true }, true, []string{insecure}},
		{"three", func(c *Config) { *c = three() }, true, []string{insecure}},
		{"joining", func(c *Config) { *c = joining() }, true, []string{insecure}},
		{"with certificates", func(c *Config) { *c = secure() }, true, nil},
		{"alone with certificates", func(c *Config) { *c = secure(); c.Cluster.Expect, c.Gossip.Seeds = 1, nil }, true, nil},
		{"two", func(c *Config) { *c = three(); c.Cluster.Expect = 2 }, true, []string{insecure, two}},
		{"three without seeds", func(c *Config) { *c = three(); c.Gossip.Seeds = nil }, true, []string{insecure, alone}},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := Default()
			c.change(&config)
			if err := config.Check(); err != nil {
				t.Fatal(err)
			}
			if got := config.Clustered(); got != c.clustered {
				t.Errorf("clustered: %v, want %v", got, c.clustered)
			}
			got := config.Warnings()
			if len(got) != len(c.warnings) {
				t.Fatalf("warnings %q, want %d", got, len(c.warnings))
			}
			for i, text := range c.warnings {
				if !strings.Contains(got[i], text) {
					t.Errorf("warning %q lacks %q", got[i], text)
				}
			}
		})
	}
}

func TestGossipKeys(t *testing.T) {
	key := bytes.Repeat([]byte{0xfb, 0xff, ' ', '\n'}, 8)
	text := base64.StdEncoding.EncodeToString(key)
	for name, content := range map[string]string{
		"raw": string(key), "hexadecimal": hex.EncodeToString(key) + "\n", "capitals": strings.ToUpper(hex.EncodeToString(key)),
		"base64": text + "\r\n", "base64 without padding": base64.RawStdEncoding.EncodeToString(key),
		"base64 for URLs": " " + base64.URLEncoding.EncodeToString(key), "base64 for URLs without padding": base64.RawURLEncoding.EncodeToString(key),
		"comments and empty lines": "# made by hand\n\n\t" + text + "\n #" + text + "\n",
	} {
		got, err := Gossip{KeyFile: write(t, content)}.Keys()
		if err != nil || len(got) != 1 || !bytes.Equal(got[0], key) {
			t.Errorf("%s: %x, %v; want %x", name, got, err, key)
		}
	}
	other := bytes.Repeat([]byte{7}, 32)
	got, err := Gossip{KeyFile: write(t, text+"\n"+hex.EncodeToString(other))}.Keys()
	if err != nil || len(got) != 2 || !bytes.Equal(got[0], key) || !bytes.Equal(got[1], other) {
		t.Errorf("two keys: %x, %v", got, err)
	}
	nine := ""
	for i := range 9 {
		nine += hex.EncodeToString(bytes.Repeat([]byte{byte(i)}, 32)) + "\n"
	}
	for name, content := range map[string]string{
		"empty": "", "short": string(key[:31]), "long": string(key) + "\n", "half of a key in hexadecimal": hex.EncodeToString(key[:16]),
		"AES-128 in base64": base64.StdEncoding.EncodeToString(key[:16]), "pass phrase": "correct horse battery staple 123", "line": "correct horse battery staple 12\n",
		"a comment": "# none\n", "twice": text + "\n" + text, "twice, otherwise written": text + "\n" + hex.EncodeToString(key), "nine": nine,
		"a second line that is no key": text + "\n" + text[1:],
	} {
		got, err := Gossip{KeyFile: write(t, content)}.Keys()
		if !errors.Is(err, eboot.ErrInvalid) || got != nil {
			t.Errorf("%s: %x, %v; want ErrInvalid", name, got, err)
		}
		if err != nil && len(content) > 8 && strings.Contains(err.Error(), content[:8]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	if _, err := (Gossip{KeyFile: write(t, strings.Repeat("ab", 1<<20))}).Keys(); !errors.Is(err, eboot.ErrTooLarge) {
		t.Errorf("huge: %v, want ErrTooLarge", err)
	}
	if keys, err := (Gossip{}).Keys(); keys != nil || err != nil {
		t.Errorf("no file: %x, %v", keys, err)
	}
	if _, err := (Gossip{KeyFile: filepath.Join(t.TempDir(), "none")}).Keys(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

func FuzzGossipKeys(f *testing.F) {
	f.Add([]byte(strings.Repeat("ab", 32) + "\n# two\n" + strings.Repeat("cd", 32)))
	f.Add(bytes.Repeat([]byte{0}, 32))
	f.Fuzz(func(t *testing.T, content []byte) {
		keys, err := ParseGossipKeys(content)
		if err != nil {
			if !errors.Is(err, eboot.ErrInvalid) || keys != nil {
				t.Fatalf("%x, %v", keys, err)
			}
			return
		}
		if len(keys) == 0 || len(keys) > maxGossipKeys {
			t.Fatalf("%d keys", len(keys))
		}
		text := ""
		for _, k := range keys {
			text += base64.StdEncoding.EncodeToString(k) + "\n"
		}
		again, err := ParseGossipKeys([]byte(text))
		if err != nil || !slices.EqualFunc(keys, again, bytes.Equal) {
			t.Fatalf("%x written and read again: %x, %v", keys, again, err)
		}
	})
}
