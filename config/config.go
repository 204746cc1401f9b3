package config

import (
	"net/netip"
	"time"
)

// Config is everything an operator can set. Default has the defaults;
// deploy/eboot.yaml says what each key means to an operator.
type Config struct {
	DataDir   string    `yaml:"data_dir"` // absolute path; the server keeps all it knows there
	Cluster   Cluster   `yaml:"cluster"`
	Boot      Boot      `yaml:"boot"`
	API       API       `yaml:"api"`
	Peer      Peer      `yaml:"peer"`
	Gossip    Gossip    `yaml:"gossip"`
	TLS       TLS       `yaml:"tls"`
	Publish   Publish   `yaml:"publish"`
	Whitelist Whitelist `yaml:"whitelist"`
	Trust     Trust     `yaml:"trust"`
	Retention Retention `yaml:"retention"`
	Log       Log       `yaml:"log"`
}

// Cluster says which group of servers this one belongs to.
type Cluster struct {
	Name string `yaml:"name"`
	// Expect is how many servers bootstrap together; 1: this one alone; 0: only
	// ever join. Load takes 1 when nothing is said and there are no seeds, else 0.
	Expect int `yaml:"expect"`
	// RaftMultiplier stretches the times after which a silent leader is replaced, for
	// slow networks: 1 is a heartbeat and an election of 1 s each.
	RaftMultiplier int `yaml:"raft_multiplier"`
}

// Boot is what slaves talk to.
type Boot struct {
	Bind     []netip.Addr `yaml:"bind"`      // IPv4; the UDP port is always 4368
	TCPPorts PortRange    `yaml:"tcp_ports"` // the first free one is taken for each ERTS version served
	Priority Priority     `yaml:"priority"`
	Roots    []string     `yaml:"roots"` // absolute: the ROOTDIRs of slaves, each of which shows the bundle
	Limits   BootLimits   `yaml:"limits"`
	// Watch is the time within which a stranger that answers slaves on the networks of Bind is
	// noticed; 0: nobody looks.
	Watch time.Duration `yaml:"watch"`
}

// PriorityMode is how the servers are ordered for a slave.
type PriorityMode string

// Modes of Priority.
const (
	PrioritySpread  PriorityMode = "spread"  // another order for each slave
	PriorityOrdered PriorityMode = "ordered" // Priority.Order for all
)

// Priority says in which order slaves choose servers.
type Priority struct {
	Mode  PriorityMode  `yaml:"mode"`
	Order []string      `yaml:"order"` // ids of servers, best first; only with ordered
	Pace  time.Duration `yaml:"pace"`  // between the answers of two neighbours in the order
}

// BootLimits bound what slaves can open.
type BootLimits struct {
	ConnectionsPerAddress int `yaml:"connections_per_address"`
	Connections           int `yaml:"connections"`
}

// API is where operators reach the server.
type API struct {
	Bind     netip.AddrPort `yaml:"bind"`     // zero: no TCP listener; see OpensTCP
	Socket   string         `yaml:"socket"`   // absolute path of a Unix socket; empty: none
	Insecure bool           `yaml:"insecure"` // TCP on loopback without TLS, where everybody is an admin
}

// DefaultSocket is where operators on the server's own machine find it.
const DefaultSocket = "/run/eboot/api.sock"

func defaultAPI() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 4380)
}

// Peer is where other servers reach this one.
type Peer struct {
	Bind      netip.AddrPort `yaml:"bind"`
	Advertise string         `yaml:"advertise"` // HOST:PORT that others dial; empty: found out
}

// Gossip is how servers find each other.
type Gossip struct {
	Bind      netip.AddrPort `yaml:"bind"`
	Advertise string         `yaml:"advertise"`
	Seeds     []string       `yaml:"seeds"`
	KeyFile   string         `yaml:"key_file"`
}

// TLS names the files of the certificates, in PEM.
type TLS struct {
	CA       string `yaml:"ca"`
	Cert     string `yaml:"cert"`
	Key      string `yaml:"key"`
	Insecure bool   `yaml:"insecure"` // a cluster without certificates; opens the peer and gossip ports also with Expect 1
}

// Publish bounds the taking in of bundles.
type Publish struct {
	Wait time.Duration `yaml:"wait"` // how long a slow ready server may hold a publish up
}

// Whitelist says how sure a server must be of who may boot.
type Whitelist struct {
	// MaxStale is how long slaves are served by a state that the cluster has not confirmed; 0: for ever.
	MaxStale time.Duration `yaml:"max_stale"`
}

// Trust says whose signatures a bundle must have before this server takes it in or serves it.
type Trust struct {
	Keys      []string `yaml:"keys"`      // absolute paths of public keys of minisign; none: no signature is asked for
	Threshold int      `yaml:"threshold"` // how many of the keys must have signed
}

// Retention says which bundles are removed by themselves.
type Retention struct {
	Keep      int           `yaml:"keep"`        // newest bundles of each name and ERTS version; 0: all
	PinMaxAge time.Duration `yaml:"pin_max_age"` // how long a boot holds its bundle
}

// LogFormat is the shape of log lines.
type LogFormat string

// Formats of Log.
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// Log says what is logged, and how.
type Log struct {
	Level  string    `yaml:"level"` // trace, debug, info, warn or error
	Format LogFormat `yaml:"format"`
}

// Default returns the configuration of a server that was told nothing.
func Default() Config {
	anyAddress := netip.IPv4Unspecified()
	return Config{
		DataDir: "/var/lib/eboot",
		Cluster: Cluster{Name: "eboot", Expect: 1, RaftMultiplier: 1},
		Boot: Boot{
			Bind:     []netip.Addr{anyAddress},
			TCPPorts: PortRange{First: 4368, Last: 4399},
			Priority: Priority{Mode: PrioritySpread, Order: []string{}, Pace: 30 * time.Millisecond},
			Roots:    []string{"/usr/lib/erlang", "/usr/local/lib/erlang", "/opt/erlang"},
			Limits:   BootLimits{ConnectionsPerAddress: 1024, Connections: 8192},
			Watch:    30 * time.Second,
		},
		API:       API{Bind: defaultAPI(), Socket: DefaultSocket},
		Peer:      Peer{Bind: netip.AddrPortFrom(anyAddress, 4381)},
		Gossip:    Gossip{Bind: netip.AddrPortFrom(anyAddress, 4382), Seeds: []string{}},
		Publish:   Publish{Wait: 30 * time.Second},
		Trust:     Trust{Keys: []string{}, Threshold: 1},
		Retention: Retention{PinMaxAge: 30 * 24 * time.Hour},
		Log:       Log{Level: "info", Format: LogText},
	}
}
