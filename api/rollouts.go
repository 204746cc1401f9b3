package api

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"

	"eboot"
)

// Rollouts move channels in stages.
type Rollouts interface {
	// Rollouts returns the latest rollout of each channel, in order of channel.
	Rollouts() []eboot.Rollout
	// Rollout returns the latest rollout of a channel, or eboot.ErrNotFound.
	Rollout(channel string) (eboot.Rollout, error)
	// PlanRollout says what StartRollout would do, and changes nothing. It fails as that
	// would, but for one that is under way.
	PlanRollout(ctx context.Context, channel string, s RolloutStart) (RolloutPlan, error)
	// StartRollout begins one. eboot.ErrNotFound: no such bundle. eboot.ErrConflict: one is
	// under way, the channel points to the bundle already, or a server is too old.
	StartRollout(ctx context.Context, w Write, channel string, s RolloutStart) (RolloutResult, error)
	// SteerRollout does what an operator says. eboot.ErrNotFound: the channel had none.
	// eboot.ErrConflict: the action makes no sense in its phase, or s.ID names another one.
	SteerRollout(ctx context.Context, w Write, channel string, s RolloutSteer) (RolloutResult, error)
}

// RolloutStart is the body of POST /v1/channels/{channel}/rollout and …/rollout/plan. What
// a body leaves out is as NewRolloutStart has it; what it names, 0 too, is taken as it is.
type RolloutStart struct {
	Bundle eboot.Ref `json:"bundle"`
	eboot.RolloutSpec
}

// NewRolloutStart returns the rollout that an operator gets who names only the bundle: one
// stage of all slaves, no failure allowed, the default times.
func NewRolloutStart(bundle eboot.Ref) RolloutStart {
	return RolloutStart{Bundle: bundle, RolloutSpec: eboot.RolloutSpec{
		Stages:       []eboot.Stage{{Name: "100%", Percent: 100}},
		DeadlineMS:   eboot.DefaultBootDeadline.Milliseconds(),
		MinHealthyMS: eboot.DefaultMinHealthy.Milliseconds(),
	}}
}

// Check reports whether s names a bundle and can be started.
func (s RolloutStart) Check() error {
	if s.Bundle.IsZero() {
		return fmt.Errorf("rollout: names no bundle: %w", eboot.ErrInvalid)
	}
	if err := s.Bundle.Check(); err != nil {
		return err
	}
	return s.RolloutSpec.Check()
}

// MaxRolloutReason bounds RolloutSteer.Reason, in bytes.
const MaxRolloutReason = 256

// RolloutSteer is the body of POST /v1/channels/{channel}/rollout/steer.
type RolloutSteer struct {
	Action eboot.RolloutAction `json:"action"`
	ID     string              `json:"id,omitempty"`     // the rollout that is meant; empty: whichever is the latest
	Reason string              `json:"reason,omitempty"` // up to MaxRolloutReason bytes
}

// Check reports whether s can be done to some rollout.
func (s RolloutSteer) Check() error {
	if len(s.Reason) > MaxRolloutReason {
		return fmt.Errorf("reason: %d bytes, at most %d: %w", len(s.Reason), MaxRolloutReason, eboot.ErrInvalid)
	}
	return s.Action.Check()
}

// RolloutResult is the answer to a change of a rollout.
type RolloutResult struct {
	WriteResult
	Rollout eboot.Rollout `json:"rollout"` // after the change
}

// MaxPlannedSlaves bounds the lists of slaves in a RolloutPlan; counts are of all.
const MaxPlannedSlaves = 100

// RolloutPlan says what a rollout would do, by what was seen of slaves until now.
type RolloutPlan struct {
	Channel string         `json:"channel"`
	Bundle  eboot.Ref      `json:"bundle"`
	Moves   []PlannedMove  `json:"moves"` // in order of ERTS version
	Stages  []PlannedStage `json:"stages"`
	// WithoutBundle are slaves of the channel that no server would boot: there is no
	// bundle for their ERTS version, neither now nor after the rollout.
	WithoutBundle []PlannedGap `json:"without_bundle"`
	Unselected    int          `json:"unselected"`  // slaves of the channel that no stage selects: they move when it succeeds
	Unreachable   int          `json:"unreachable"` // selected, and no server can restart them: stock loader, control off, or no session
	Unseen        int          `json:"unseen"`      // hosts in the whitelist, on this channel, that were never seen
}

// PlannedMove is what happens to the channel for one ERTS version.
type PlannedMove struct {
	ERTS string    `json:"erts"`
	From eboot.Ref `json:"from"` // zero: nothing
	To   eboot.Ref `json:"to"`
}

// PlannedStage is a stage and the slaves that it is the first to select.
type PlannedStage struct {
	Stage       eboot.Stage  `json:"stage"`
	Slaves      []netip.Addr `json:"slaves"` // the first MaxPlannedSlaves, in order
	Count       int          `json:"count"`
	Restartable int          `json:"restartable"` // of Count
}

// PlannedGap is an ERTS version without a bundle.
type PlannedGap struct {
	ERTS   string       `json:"erts"`
	Slaves []netip.Addr `json:"slaves"` // the first MaxPlannedSlaves, in order
	Count  int          `json:"count"`
}

func (s *Server) rollouts(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, orEmpty(s.backend.Rollouts()))
}

func (s *Server) rollout(w http.ResponseWriter, r *http.Request) error {
	if err := s.fresh(w, r); err != nil {
		return err
	}
	rollout, err := s.backend.Rollout(r.PathValue("channel"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, rollout)
}

// readRollout reads the body of a start or a plan over the defaults.
func readRollout(r *http.Request) (channel string, start RolloutStart, err error) {
	channel, start = r.PathValue("channel"), NewRolloutStart(eboot.Ref{})
	defaults := start.Stages
	start.Stages = nil // else the first one would be read into the default
	if err := eboot.CheckName("channel", channel); err != nil {
		return channel, start, err
	}
	if err := readJSON(r, &start); err != nil {
		return channel, start, err
	}
	if start.Stages == nil {
		start.Stages = defaults
	}
	return channel, start, start.Check()
}

func (s *Server) planRollout(w http.ResponseWriter, r *http.Request) error {
	channel, start, err := readRollout(r)
	if err != nil {
		return err
	}
	if err := s.fresh(w, r); err != nil {
		return err
	}
	plan, err := s.backend.PlanRollout(r.Context(), channel, start)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, plan)
}

func (s *Server) startRollout(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	channel, start, err := readRollout(r)
	if err != nil {
		return err
	}
	result, err := s.backend.StartRollout(r.Context(), write, channel, start)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

func (s *Server) steerRollout(w http.ResponseWriter, r *http.Request) error {
	write, err := readWrite(r)
	if err != nil {
		return err
	}
	var body RolloutSteer
	if err := readJSON(r, &body); err != nil {
		return err
	}
	if err := body.Check(); err != nil {
		return err
	}
	result, err := s.backend.SteerRollout(r.Context(), write, r.PathValue("channel"), body)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, result)
}

// Rollouts returns the latest rollout of each channel, in order of channel.
func (c *Client) Rollouts(ctx context.Context) (rollouts []eboot.Rollout, err error) {
	return rollouts, c.do(ctx, call{method: "GET", path: "/v1/rollouts", query: c.state()}, &rollouts)
}

// Rollout returns the latest rollout of a channel, or eboot.ErrNotFound.
func (c *Client) Rollout(ctx context.Context, channel string) (r eboot.Rollout, err error) {
	return r, c.do(ctx, call{method: "GET", path: channelPath(channel) + "/rollout", query: c.state()}, &r)
}

// PlanRollout says what StartRollout would do.
func (c *Client) PlanRollout(ctx context.Context, channel string, s RolloutStart) (r RolloutPlan, err error) {
	return r, c.do(ctx, call{method: "POST", path: channelPath(channel) + "/rollout/plan", query: c.state(), body: s}, &r)
}

// StartRollout begins to move a channel to another bundle.
func (c *Client) StartRollout(ctx context.Context, channel string, s RolloutStart) (r RolloutResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: channelPath(channel) + "/rollout", body: s, write: true}, &r)
}

// SteerRollout tells the rollout of a channel what to do.
func (c *Client) SteerRollout(ctx context.Context, channel string, s RolloutSteer) (r RolloutResult, err error) {
	return r, c.do(ctx, call{method: "POST", path: channelPath(channel) + "/rollout/steer", body: s, write: true}, &r)
}
