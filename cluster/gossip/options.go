package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"eboot"
)

// DefaultInterval is how often Run looks for servers that are not alive.
const DefaultInterval = 3 * time.Second

// Options of Open.
type Options struct {
	// Cluster is its name, as eboot.CheckName has it. Servers of other names are not heard.
	Cluster string
	// Bind is where to listen, with UDP and TCP. Port 0: any free one.
	Bind netip.AddrPort
	// Advertise is HOST or HOST:PORT that others reach this server at. Empty: Bind, or
	// when that is 0.0.0.0, the first private address of this machine.
	Advertise string
	// Seeds are HOST:PORT of servers to join. A name may stand for several addresses;
	// this server may be among them.
	Seeds []string
	// Keys encrypt everything, the first what is sent; what comes may be of any. Each has
	// 16, 24 or 32 bytes, 32 are best. nil: nothing is encrypted.
	Keys [][]byte
	// Meta is what to tell of this server.
	Meta Meta
	// Rejoin returns more HOST:PORT to join when nobody alive has them; nil: none.
	Rejoin func() []string
	// PeersFile is where to keep the gossip addresses of other servers, so that a
	// restart finds them without seeds; "": nowhere.
	PeersFile string
	// Interval is the time between looks for servers that are not alive; 0: DefaultInterval.
	Interval time.Duration
	// Logger; nil: nothing is logged.
	Logger hclog.Logger
	// Local is for tests on one machine: a silent server is dead after about a second,
	// and forgotten after another.
	Local bool
}

// check completes the options. Errors wrap eboot.ErrInvalid or eboot.ErrTooLarge.
func (o *Options) check() error {
	if err := eboot.CheckName("cluster name", o.Cluster); err != nil {
		return err
	}
	switch {
	case !o.Bind.IsValid():
		return fmt.Errorf("no address to listen on: %w", eboot.ErrInvalid)
	case o.Bind.Addr().Is6() && o.Bind.Addr().IsUnspecified() && o.Advertise == "":
		return fmt.Errorf("listening on %s needs an address to advertise: set gossip.advertise: %w", o.Bind.Addr(), eboot.ErrInvalid)
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return nil
}

const resolveTimeout = 5 * time.Second

// advertised resolves Advertise. It returns "" and 0 when memberlist is to find it out.
func (o *Options) advertised() (ip string, port int, err error) {
	if o.Advertise == "" {
		return "", 0, nil
	}
	host, text, err := net.SplitHostPort(o.Advertise)
	if err != nil {
		host, text = o.Advertise, strconv.Itoa(int(o.Bind.Port()))
	}
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("gossip.advertise %q: the port is not a number: %w", o.Advertise, eboot.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err == nil && len(found) == 0 {
		err = errors.New("no address")
	}
	if err != nil {
		return "", 0, fmt.Errorf("gossip.advertise %q: %w", o.Advertise, err)
	}
	chosen := found[0].Unmap()
	for _, a := range found {
		if a = a.Unmap(); a.Is4() {
			chosen = a
			break
		}
	}
	if chosen.IsUnspecified() {
		return "", 0, fmt.Errorf("gossip.advertise %q is no address that others can reach: %w", o.Advertise, eboot.ErrInvalid)
	}
	return chosen.String(), int(number), nil
}

// Timings that differ from memberlist's.
const (
	// A peer that does not answer within this is given up for the moment.
	streamTimeout = 5 * time.Second
	// The periodic exchange of everything known mends what lost datagrams left. For
	// the few servers of a cluster it can be more frequent than memberlist's 30 s.
	pushPull = 10 * time.Second
	// reclaim is how long after its death an id is taken at another address. It need
	// not be long: ids are unique, so who has the id is that server.
	reclaim = 2 * time.Second
)

// config is memberlist's configuration, without transport, delegates and logger.
func (o *Options) config() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.TCPTimeout = streamTimeout
	c.PushPullInterval = pushPull
	c.DeadNodeReclaimTime = reclaim
	if o.Local {
		c.TCPTimeout = time.Second
		c.ProbeInterval, c.ProbeTimeout = 200*time.Millisecond, 100*time.Millisecond
		c.GossipInterval = 20 * time.Millisecond
		c.GossipToTheDeadTime = time.Second
		c.PushPullInterval = 2 * time.Second
		c.DeadNodeReclaimTime = 200 * time.Millisecond
	}
	c.Name = o.Meta.ID
	c.Label = "eboot/" + o.Cluster // two clusters never merge (R9 and its neighbours)
	c.BindAddr, c.BindPort = o.Bind.Addr().Unmap().String(), int(o.Bind.Port())
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = true, true
	c.EnableCompression = false // what is sent is small
	c.RequireNodeNames = true   // a ping is answered only by whom it was meant for
	c.MsgpackUseNewTimeFormat = true
	return c
}
