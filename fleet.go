package eboot

import (
	"net/netip"
	"time"
)

// BootPhase is how far a boot came.
type BootPhase string

// The phases of a boot. A stock slave reports nothing: what is known is what it asked
// for. One that runs eboot's loader reports its progress and the end of its boot.
const (
	BootLoading BootPhase = "loading" // the boot script was sent, and the slave is not known to be up
	BootQuiet   BootPhase = "quiet"   // no request for a while, and none of a report: up and running
	BootStarted BootPhase = "started" // the loader reported the end of the boot: up and running
	BootClosed  BootPhase = "closed"  // the slave closed its connection, as both loaders do after 60 s without use
	BootFailed  BootPhase = "failed"  // it did not come to its end, or the slave was gone right after; Failure says how
)

// Boot is one boot of one slave, as the server saw it that serves it, or did last.
type Boot struct {
	BootRecord
	Slave    netip.Addr `json:"slave"`
	Server   string     `json:"server"` // id of the server that observed it last
	ERTS     string     `json:"erts"`
	Channel  string     `json:"channel"`
	Bundle   Ref        `json:"bundle"`
	Manifest Digest     `json:"manifest"`
	// Loader is LoaderStock until eboot's loader has opened a session: LoaderEboot.
	Loader string    `json:"loader"`
	Phase  BootPhase `json:"phase"`
	// Began is when the boot script was asked for; of a boot that was taken over, when the
	// slave's loader started, as the slave says.
	Began  time.Time `json:"began"`
	Latest time.Time `json:"latest"` // the latest request; a report is one
	// Loaded is the end of the boot, so that Loaded - Began is how long it took; zero while
	// that is not known. A loader of ours reports it; of a stock one it is the latest request
	// before the first quiet second.
	Loaded   time.Time `json:"loaded,omitzero"`
	Requests int64     `json:"requests"`
	Bytes    int64     `json:"bytes"` // sent to the slave, frames included
	// Cured is what a slave with eboot's loader says of its boot; nil with a stock one. It is
	// never changed in place: a copy of a Boot may keep it.
	Cured *CuredBoot `json:"cured,omitempty"`
	// Lost, in a stream of boots, counts the changes that were not delivered before
	// this one, because the reader was too slow.
	Lost int64 `json:"lost,omitempty"`
}

// BootRecord is what the servers need to tell each other of one boot.
type BootRecord struct {
	// ID is the same on every server, also when another one takes the slave over.
	ID string `json:"id"`
	// Revision rises with every change that other servers are told of.
	Revision uint64 `json:"revision"`
	// Failure is why the boot counts as failed; empty: it does not. A slave that goes on with
	// its boot after all takes it back.
	Failure  string    `json:"failure,omitempty"`
	FailedAt time.Time `json:"failed_at,omitzero"` // when that happened
	// EndedAt is when its latest connection ended; zero while there is one.
	EndedAt time.Time `json:"ended_at,omitzero"`
	// Rollout is the id of the rollout because of which the slave boots this bundle; empty:
	// the channel pointed to it.
	Rollout string `json:"rollout,omitempty"`
}

// CuredBoot is what is known of the boot of a slave that runs eboot's loader.
type CuredBoot struct {
	// Number is random and the slave's own: the same for one boot on every connection and
	// server. It tells slaves behind one address apart.
	Number    uint64     `json:"number"`
	Mode      string     `json:"mode"`                 // "interactive" or "embedded"
	TakenOver bool       `json:"taken_over,omitempty"` // it began on another server
	Phases    []BootMark `json:"phases,omitempty"`     // what init reached, in the order of the reports
	Switches  int64      `json:"switches"`             // how often the slave changed its server
	Local     int64      `json:"local"`                // requests that were answered on the slave
	// Control: the slave can be told to restart now, over a session that is kept open for that.
	Control bool `json:"control,omitempty"`
}

// MarkRestarting is the phase that a slave reports as its last word when it was told to restart.
const MarkRestarting = "restarting"

// BootMark is a phase of init and when it was reached: "kernel_load_completed", or
// "started" for the end of the boot.
type BootMark struct {
	Phase string `json:"phase"`
	AtMS  int64  `json:"at_ms"` // milliseconds since the slave's loader started, as the slave counts them
}

// SlaveStatus is a row of the fleet: a slave with one ERTS version that was seen, or an entry
// of the whitelist of which no slave was.
type SlaveStatus struct {
	Slave   netip.Addr        `json:"slave,omitzero"`  // zero: none of this entry was seen
	Prefix  netip.Prefix      `json:"prefix,omitzero"` // the entry that decides; zero: it is not whitelisted any more
	Channel string            `json:"channel,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	// Next is what the slave gets when it boots now; zero: nothing.
	Next Ref `json:"next,omitzero"`
	// Boot is the latest boot that is known; nil: it only asked.
	Boot     *Boot     `json:"boot,omitempty"`
	ERTS     string    `json:"erts,omitempty"`
	LastSeen time.Time `json:"last_seen,omitzero"`
	Boots    int       `json:"boots"`    // that are remembered
	Failures int       `json:"failures"` // of them
	Refusal  string    `json:"refusal,omitempty"`
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

// PlanKey names what a plan belongs to: boots of one bundle with one boot script in one
// mode of code loading.
type PlanKey struct {
	Manifest Digest `json:"manifest"`
	Script   string `json:"script"` // path of the boot script in the bundle
	Embedded bool   `json:"embedded,omitempty"`
}

// PlanFile is one file of a plan.
type PlanFile struct {
	Path string `json:"path"` // relative to the root of the bundle, clean
	Size int64  `json:"size"` // of its content, in bytes
}

// LearnedPlan is the files that boots asked for, in the order first learned.
type LearnedPlan struct {
	PlanKey
	Files []PlanFile `json:"files"`
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
