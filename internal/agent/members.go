package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"eboot"
	"eboot/api"
	"eboot/cluster"
	"eboot/fsm"
	"eboot/internal/peerrpc"
)

// Roles of a server in the list of members.
const (
	roleLeader   = "leader"
	roleVoter    = "voter"
	roleNonVoter = "non-voter"
	roleWaiting  = "waiting"
)

func members(raft cluster.Status) []eboot.Member {
	list := make([]eboot.Member, 0, len(raft.Servers))
	for _, m := range raft.Servers {
		list = append(list, eboot.Member{ID: m.ID, Address: m.Address, Voter: m.Voter, Leader: m.ID == raft.Leader})
	}
	return list
}

// Members returns the servers of the cluster, as this one and what they say of
// themselves show them.
func (a *Agent) Members(ctx context.Context) (eboot.Membership, error) {
	infos := a.infos(ctx)
	raft := a.cluster.Status()
	state := a.view.State()
	m := eboot.Membership{
		Cluster: a.config.Cluster.Name, Leader: raft.Leader, Bundles: len(state.Bundles()),
		Priority: string(a.config.Boot.Priority.Mode), Warnings: a.warnings(), Members: []eboot.MemberDetail{},
	}
	if order := a.config.Boot.Priority.Order; len(order) > 0 {
		m.Priority += ": " + strings.Join(order, ", ")
	}
	newest := uint64(0)
	for _, info := range infos {
		newest = max(newest, info.StateIndex)
	}
	voters, alive := 0, 0
	for _, s := range members(raft) {
		d := eboot.MemberDetail{Member: s, Role: roleNonVoter, Drained: state.Drained(s.ID)}
		if s.Voter {
			d.Role = roleVoter
			voters++
		}
		if s.Leader {
			d.Role = roleLeader
		}
		info, answered := infos[s.ID]
		a.describeMember(&d, info, answered, newest)
		if s.Voter && answered {
			alive++
		}
		m.Members = append(m.Members, d)
	}
	m.FailureTolerance = max(0, alive-(voters/2+1))
	slices.SortFunc(m.Members, func(x, y eboot.MemberDetail) int { return strings.Compare(x.ID, y.ID) })
	for _, l := range infos[raft.Leader].Learning {
		for i := range m.Members {
			if d := &m.Members[i]; d.ID == l.ID && d.Problem == "" {
				d.Problem = "does not vote yet: " + l.Reason
			}
		}
	}
	for _, w := range infos[raft.Leader].Waiting {
		m.Members = append(m.Members, eboot.MemberDetail{
			Member: eboot.Member{ID: w.ID, Address: w.Address}, Role: roleWaiting, Health: eboot.HealthAlive,
			Version: infos[w.ID].Version, BootAddress: infos[w.ID].BootAddresses, Problem: w.Reason,
			CertificateExpires: infos[w.ID].CertificateExpires,
		})
	}
	return m, nil
}

// describeMember enters what a member said of itself, and what gossip says of it.
func (a *Agent) describeMember(d *eboot.MemberDetail, info peerrpc.ServerInfo, answered bool, newest uint64) {
	heard, known := a.peers.member(d.ID)
	switch {
	case a.peers.alive(d.ID):
		d.Health = eboot.HealthAlive
	case known && heard.Left:
		d.Health = eboot.HealthLeft
	default:
		d.Health = eboot.HealthGone
	}
	if !answered {
		d.Version, d.BootAddress = heard.Version, heard.Boot
		if d.Health == eboot.HealthAlive {
			d.Problem = "gossip hears from it and its peer port does not answer; look at " + d.Address
		}
		return
	}
	d.Version, d.BootAddress, d.AppliedIndex = info.Version, info.BootAddresses, info.StateIndex
	d.Lag = newest - info.StateIndex
	d.CertificateExpires = info.CertificateExpires
	d.Bundles, d.Ready = info.Holds(), info.Ready
	if len(info.Reasons) > 0 {
		d.Problem = info.Reasons[0]
	}
}

// warnings are what works and should not stay so.
func (a *Agent) warnings() []string {
	warnings := append(a.config.Warnings(), a.secrets.warnings()...)
	if a.peers.gossip != nil {
		if err := a.peers.gossip.Problem(); err != nil {
			warnings = append(warnings, err.Error())
		}
	}
	if text := a.boot.freshness.warning(); text != "" {
		warnings = append(warnings, text)
	}
	warnings = append(warnings, a.watch.warnings()...)
	voters := 0
	for _, s := range a.cluster.Status().Servers {
		if s.Voter {
			voters++
		}
	}
	if voters == 2 {
		warnings = append(warnings, "two servers vote: when either fails no change is possible until it is back (slaves go on booting); a third server mends that")
	}
	return warnings
}

// serverID resolves what an operator wrote: the id, the beginning of it, or self.
func (a *Agent) serverID(id string) (string, error) {
	if id == "" || id == "self" {
		return a.server, nil
	}
	if whole, err := uuid.Parse(id); err == nil {
		return whole.String(), nil
	}
	known := map[string]bool{}
	for _, s := range a.cluster.Status().Servers {
		known[s.ID] = true
	}
	for _, other := range a.peers.living() {
		known[other] = true
	}
	for _, drained := range a.view.State().DrainedServers() {
		known[drained] = true
	}
	var found []string
	for k := range known {
		if k == id {
			return k, nil
		}
		if strings.HasPrefix(k, id) {
			found = append(found, k)
		}
	}
	switch len(found) {
	case 0:
		return "", fmt.Errorf("server %q: is not known; `eboot cluster members` lists the ids: %w", id, eboot.ErrNotFound)
	case 1:
		return found[0], nil
	}
	slices.Sort(found)
	return "", fmt.Errorf("server %q: may be %s; give more of the id: %w", id, strings.Join(found, " or "), eboot.ErrInvalid)
}

// InitCluster founds a cluster of this server alone.
func (a *Agent) InitCluster(ctx context.Context) error { return a.cluster.Found(ctx) }

// DrainServer makes slaves go to other servers than this id, or lets them come again.
func (a *Agent) DrainServer(ctx context.Context, w api.Write, id string, drained bool) (api.WriteResult, error) {
	server, err := a.serverID(id)
	if err != nil {
		return api.WriteResult{}, err
	}
	return a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.SetDrained{Header: h, Server: server, Drained: drained} })
}

// TransferLeadership hands leadership to a server, or to any other.
func (a *Agent) TransferLeadership(ctx context.Context, by eboot.Actor, to string) (string, error) {
	if to != "" {
		server, err := a.serverID(to)
		if err != nil {
			return "", err
		}
		to = server
	}
	// It is asked for once: a repeat might hand leadership on, or back.
	if err := a.awaitLeader(ctx); err != nil {
		return "", fmt.Errorf("transfer leadership: %s: %w", a.missingVoters(), err)
	}
	var err error
	switch leader := a.cluster.Status().Leader; leader {
	case to:
	case a.server:
		err = a.TransferHere(ctx, to)
	default:
		err = a.peers.rpc.Transfer(ctx, leader, to)
	}
	if err != nil {
		return "", err
	}
	if to == "" {
		if err := a.awaitLeader(ctx); err != nil {
			return "", err
		}
		to = a.cluster.Status().Leader
	}
	a.note(ctx, by, eboot.EventLeaderTransferred, "leadership was handed to server "+to)
	return to, nil
}

func (a *Agent) awaitLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	return a.cluster.WaitForLeader(ctx)
}

// TransferHere is TransferLeadership on the leader.
func (a *Agent) TransferHere(ctx context.Context, to string) error {
	return a.cluster.Transfer(ctx, to)
}

// removePatience is how long a change of the membership may take.
const removePatience = 10 * time.Second

// RemoveServer takes a server out of the cluster; with replace the one that waits at its
// address comes in.
func (a *Agent) RemoveServer(ctx context.Context, w api.Write, id string, replace bool) (result api.WriteResult, err error) {
	server, err := a.serverID(id)
	if err != nil {
		return result, err
	}
	header, err := a.header(ctx, w)
	if err != nil {
		return result, err
	}
	w.By = header.By // who is not to be told of does not travel to the leader either
	err = a.withLeader(ctx, "remove server", removePatience, func(ctx context.Context, leader string) (err error) {
		if leader == server && !replace {
			// A leader that removes itself leaves its last step to the next one.
			if len(a.cluster.Status().Servers) == 1 {
				return fmt.Errorf("server %s is the only one; stop it and `eboot cluster reset` it instead: %w", server, eboot.ErrConflict)
			}
			if leader == a.server {
				err = a.TransferHere(ctx, "")
			} else {
				err = a.peers.rpc.Transfer(ctx, leader, "")
			}
			if err == nil {
				err = fmt.Errorf("leadership of the server to be removed was handed over: %w", eboot.ErrNoLeader) // and again, at the next leader
			}
			return err
		}
		if leader == a.server {
			result, err = a.RemoveHere(ctx, w, server, replace)
		} else {
			result, err = a.peers.rpc.Remove(ctx, leader, w, server, replace)
		}
		return err
	})
	return result, err
}

// RemoveHere is RemoveServer on the leader. It may be repeated.
func (a *Agent) RemoveHere(ctx context.Context, w api.Write, id string, replace bool) (api.WriteResult, error) {
	a.leaving.add(id) // it is alive in gossip and must not be taken in again meanwhile
	defer a.leaving.remove(id)
	remove := a.cluster.Remove
	if replace {
		remove = a.cluster.Replace
	}
	err := remove(ctx, id)
	// One that Raft does not know may have been removed by an attempt that did not get
	// further, or whose answer was lost.
	if err != nil && (!errors.Is(err, eboot.ErrNotFound) || !a.heardOf(id)) {
		return api.WriteResult{}, err
	}
	result, err := a.write(ctx, w, func(h fsm.Header) fsm.Command { return fsm.RemoveServer{Header: h, Server: id} })
	if errors.Is(err, eboot.ErrNoLeader) || errors.Is(err, eboot.ErrTimeout) {
		err = fmt.Errorf("remove server %s: it has lost its vote, and that it is removed was not written down: %v: %w", id, err, eboot.ErrUnknownOutcome)
	}
	return result, err
}

// heardOf reports whether a server that is not a member is or was one.
func (a *Agent) heardOf(id string) bool {
	state := a.machine.State()
	if _, ok := a.peers.member(id); ok || state.Removed(id) || state.Drained(id) {
		return true
	}
	return slices.ContainsFunc(state.Bundles(), func(b eboot.Bundle) bool { return slices.Contains(b.Holders, id) })
}
