package peerport

import (
	"time"

	"github.com/hashicorp/go-hclog"
)

// Defaults of Options.
const (
	DefaultConnections    = 1024
	DefaultPerAddress     = 32
	DefaultOpenPerAddress = 256
	DefaultPreface        = 5 * time.Second
)

// Options of New.
type Options struct {
	// Cluster is the name of the cluster. Connections for another are refused.
	Cluster string
	// Server is this server's id. Connections meant for another are refused, and
	// those that come from this very id: two servers cannot share one.
	Server string
	// Credentials prove who connects. nil: nothing does, and everything is readable on
	// the way.
	Credentials Credentials
	// Closed lists protocols that are refused until Admit.
	Closed []string
	// Connections is how many may be open at a time, handed over or not; 0:
	// DefaultConnections. Half of them at most may be without a preface.
	Connections int
	// PerAddress is how many one IP address may have open that have not been handed
	// over; 0: DefaultPerAddress.
	PerAddress int
	// OpenPerAddress is how many one IP address may have open, handed over or not, so
	// that one that idles leaves room for the others; 0: DefaultOpenPerAddress.
	OpenPerAddress int
	// Preface is how long a connection may take until it is handed over: to say what
	// it wants, and then to be accepted by the listener. 0: DefaultPreface.
	Preface time.Duration
	// Logger; nil: nothing is logged.
	Logger hclog.Logger
}

func (o Options) withDefaults() Options {
	if o.Connections <= 0 {
		o.Connections = DefaultConnections
	}
	if o.PerAddress <= 0 {
		o.PerAddress = DefaultPerAddress
	}
	if o.OpenPerAddress <= 0 {
		o.OpenPerAddress = DefaultOpenPerAddress
	}
	if o.Preface <= 0 {
		o.Preface = DefaultPreface
	}
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return o
}
