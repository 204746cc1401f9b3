package eboot

import (
	"net/netip"
	"time"
)

// BootPhase is how far a boot came, as the wire shows it.
type BootPhase string

// The phases of a boot of a stock slave. A stock slave reports nothing: what is
// known is what it asked for.
const (
	BootLoading BootPhase = "loading" // the boot script was sent, files are being asked for
	BootQuiet   BootPhase = "quiet"   // no request for a while, the connection is open: up and running
	BootClosed  BootPhase = "closed"  // the slave closed its connection; a stock one does after 60 s without use
)

// Boot is one boot of one slave, as one server saw it.
type Boot struct {
	Slave    netip.Addr `json:"slave"`
	Server   string     `json:"server"` // id of the server that observed it
	ERTS     string     `json:"erts"`
	Channel  string     `json:"channel"`
	Bundle   Ref        `json:"bundle"`
	Manifest Digest     `json:"manifest"`
	Phase    BootPhase  `json:"phase"`
	Began    time.Time  `json:"began"`  // the boot script was asked for
	Latest   time.Time  `json:"latest"` // the latest request
	// Loaded is the latest request before the first quiet second, so that
	// Loaded - Began is how long the boot took; zero while it has not been quiet.
	Loaded   time.Time `json:"loaded,omitzero"`
	Requests int64     `json:"requests"`
	Bytes    int64     `json:"bytes"` // sent to the slave, frames included
	// Lost, in a stream of boots, counts the changes that were not delivered before
	// this one, because the reader was too slow.
	Lost int64 `json:"lost,omitempty"`
}

// Sighting is what one server remembers of one address: the latest discovery,
// whether it was answered, and the latest request.
type Sighting struct {
	Slave         netip.Addr `json:"slave"`
	AskedAt       time.Time  `json:"asked_at,omitzero"` // latest discovery
	AskedERTS     string     `json:"asked_erts,omitempty"`
	Answered      bool       `json:"answered"`
	Refusal       string     `json:"refusal,omitempty"` // why not, when not answered
	Connections   int        `json:"connections"`       // open now
	LatestAt      time.Time  `json:"latest_at,omitzero"`
	LatestRequest string     `json:"latest_request,omitempty"` // "get /opt/erlang/bin/start.boot"
	UncoveredPath string     `json:"uncovered_path,omitempty"` // the latest path below no root
}

// Pin is the bundle that one boot of one slave began with. A slave without our
// loader keeps it, by its address, until it boots again.
type Pin struct {
	Slave    netip.Addr `json:"slave"`
	ERTS     string     `json:"erts"`
	Manifest Digest     `json:"manifest"`
	At       time.Time  `json:"at"`
}

// Explanation says step by step why an address would or would not boot.
type Explanation struct {
	Slave  netip.Addr    `json:"slave"`
	Boots  bool          `json:"boots"`
	Steps  []ExplainStep `json:"steps"`
	Advice string        `json:"advice,omitempty"` // what to do next, when it does not boot
}

// StepResult is the outcome of one step of an explanation.
type StepResult string

// Outcomes of a step.
const (
	StepOK      StepResult = "ok"
	StepFailed  StepResult = "failed"
	StepUnknown StepResult = "unknown" // this server has not seen it
	StepNote    StepResult = "note"    // what was observed; it does not decide
)

// ExplainStep is one question of an explanation and its answer.
type ExplainStep struct {
	Step   string     `json:"step"`
	Result StepResult `json:"result"`
	Detail string     `json:"detail"`
}
