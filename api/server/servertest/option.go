package servertest

import (
	"context"

	"vpssnapd/daemon/vps"
)

func (s *Service) Offers() []vps.Offer {
	return []vps.Offer{{
		ID: "snapshot", Name: "Snapshot",
		Price:      vps.Price{Amount: 299, Currency: "EUR", Period: vps.PeriodMonth},
		Conditions: []string{"A snapshot is no backup."},
	}}
}

func (s *Service) Option(_ context.Context, ref string) (vps.Option, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return vps.Option{}, err
	}
	if v.Option == nil {
		return vps.Option{}, vps.Errorf(vps.CodeNotFound, "the VPS has no option")
	}
	return *v.Option, nil
}

// OptionHistory knows of each option what it became last.
func (s *Service) OptionHistory(_ context.Context, q vps.OptionQuery) (vps.OptionHistory, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(q.VPS)
	if err != nil || v.Option == nil || q.Before == 1 {
		return vps.OptionHistory{}, err
	}
	return vps.OptionHistory{Changes: []vps.OptionChange{{ID: 1, At: Epoch, Option: v.Option.ID, State: v.Option.State,
		Actor: vps.Actor{Name: "shop", Way: vps.WayOrder}, Note: "ordered"}}}, nil
}

func (s *Service) PutOption(ctx context.Context, ref string, o vps.OptionOrder, a vps.Actor) (vps.Option, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return vps.Option{}, err
	}
	version := ""
	if v.Option != nil {
		version = v.Option.Version()
	}
	if err := vps.CallOf(ctx).CheckMatch(version); err != nil {
		return vps.Option{}, err
	}
	s.called(string(o.State), v.Name, a)
	v.Option = s.option(v.ID, o.State)
	v.Option.OrderRef, v.Option.ContactEmail, v.Option.Locale, v.Option.EndsAt = o.OrderRef, o.ContactEmail, o.Locale, o.EndsAt
	if o.Price != nil {
		v.Option.Price = *o.Price
	}
	return *v.Option, nil
}

func (s *Service) CancelOption(_ context.Context, ref string, now bool, a vps.Actor) (vps.Option, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, err := s.find(ref)
	if err != nil {
		return vps.Option{}, err
	}
	if v.Option == nil {
		return vps.Option{}, vps.Errorf(vps.CodeNotFound, "the VPS has no option")
	}
	s.called("cancel-option", v.Name, a)
	until := Epoch.AddDate(0, 0, 30)
	v.Option.State, v.Option.CancelledAt, v.Option.GraceUntil = vps.OptionGrace, &Epoch, &until
	if now {
		v.Option.State, v.Option.GraceUntil, v.Option.ReleasedAt = vps.OptionReleased, nil, &Epoch
		v.Snapshot = nil
	}
	o := *v.Option
	if now {
		v.Option = nil
	}
	return o, nil
}
