package vps

import "cmp"

// reasons say of each code, to a customer, why something could not be done: no
// host paths, no internals, nothing that only an operator can do.
var reasons = map[Code]map[Language]string{
	CodeUnauthenticated: {
		English: "The request came without a valid token.",
		French:  "La demande ne portait pas de jeton valable.",
	},
	CodeForbidden: {English: "The request is not permitted.", French: "La demande n'est pas permise."},
	CodeNotFound: {
		English: "What it is about is not there, or no longer.",
		French:  "Ce dont il s'agit n'existe pas, ou plus.",
	},
	CodeOptionRequired: {
		English: "The snapshot option of the VPS is not active.",
		French:  "L'option snapshot du VPS n'est pas active.",
	},
	CodeSnapshotExists: {
		English: "The VPS already has its one snapshot.",
		French:  "Le VPS a déjà son snapshot ; il ne peut en avoir qu'un.",
	},
	CodeOperationInProgress: {
		English: "Another operation of the VPS was not finished.",
		French:  "Une autre opération du VPS n'était pas terminée.",
	},
	CodeVPSChanged: {
		English: "The VPS or its disks were changed meanwhile, or are in use by something else.",
		French:  "Le VPS ou ses disques ont été modifiés entre-temps, ou sont utilisés par autre chose.",
	},
	CodeConfirmationRequired: {English: "The request was not confirmed.", French: "La demande n'a pas été confirmée."},
	CodePreconditionFailed: {
		English: "What was to be changed had been changed meanwhile.",
		French:  "Ce qui devait être modifié l'avait été entre-temps.",
	},
	CodeInvalid: {English: "The request is not valid.", French: "La demande n'est pas valable."},
	CodeUnsupportedDisk: {
		English: "The disks of the VPS do not permit it.",
		French:  "Les disques du VPS ne le permettent pas.",
	},
	CodeInsufficientSpace: {
		English: "There is not enough space on the host.",
		French:  "L'espace disque de l'hôte ne suffit pas.",
	},
	CodeHypervisorUnavailable: {English: "The host did not answer.", French: "L'hôte n'a pas répondu."},
	CodeGuestUnresponsive: {
		English: "The guest agent in the VPS did not answer.",
		French:  "L'agent invité du VPS n'a pas répondu.",
	},
	CodeRateLimited: {English: "There were too many requests.", French: "Il y a eu trop de demandes."},
	CodeInternal:    {English: "An internal error occurred.", French: "Une erreur interne s'est produite."},
}

// In says to a customer why something could not be done.
func (c Code) In(l Language) string { return reasons[c][l] }

// remedies say to a customer what to do next, where they can do something themselves.
var remedies = map[Code]map[Language]string{
	CodeGuestUnresponsive: {
		English: "Look at qemu-guest-agent in the VPS, or allow a snapshot without it.",
		French:  "Vérifiez qemu-guest-agent dans le VPS, ou autorisez un snapshot sans lui.",
	},
}

// support is what to do next in every other case.
var support = map[Language]string{
	English: "Ask for it again later; if it fails again, contact the support.",
	French:  "Refaites la demande plus tard ; si elle échoue encore, contactez l'assistance.",
}

// remedy says to a customer what to do next.
func (c Code) remedy(l Language) string { return cmp.Or(remedies[c][l], support[l]) }

// parked is what to do next about an operation that waits for an operator: the very
// remedy (virsh edit ...) is for nobody else.
var parked = map[Language]string{
	English: "You need not do anything: it goes on when the operator of the host has cured the cause.",
	French:  "Vous n'avez rien à faire : l'opération continuera dès que l'opérateur aura remédié à la cause.",
}

// In returns an operation as a customer reads it in a language.
func (o Operation) In(l Language) Operation {
	if l == French {
		o.Result, o.Progress.Note = frenchResult(o.Result), frenchResult(o.Progress.Note)
	}
	if e := o.Error; e != nil {
		detail, remedy := e.Code.failed(l, o.Status)
		o.Error = &Error{Code: e.Code, Detail: detail, Remedy: remedy}
	}
	return o
}

// broken is why a snapshot is broken: which file of the host it is, is for operators.
var broken = map[Language]string{
	English: "what it consists of is no longer as it was",
	French:  "ce dont il se compose n'est plus tel qu'il était",
}

// In returns a snapshot as a customer reads it in a language.
func (s Snapshot) In(l Language) Snapshot {
	if s.Reason != "" {
		s.Reason = broken[l]
	}
	return s
}

// In returns a snapshot as a customer reads it in a language.
func (s SnapshotEvent) In(l Language) SnapshotEvent {
	if s.Reason != "" {
		s.Reason = broken[l]
	}
	return s
}

// In returns an operation as a customer reads it in a language.
func (o OperationEvent) In(l Language) OperationEvent {
	if l == French {
		o.Result = frenchResult(o.Result)
	}
	if o.Code != "" {
		o.Detail, o.Remedy = o.Code.failed(l, o.Status)
	}
	return o
}

// failed is what a customer is told of an operation's failure, and what to do next.
// What went wrong on the host is told to operators only.
func (c Code) failed(l Language, s Status) (detail, remedy string) {
	if s == StatusNeedsAttention {
		return c.In(l), parked[l]
	}
	return c.In(l), c.remedy(l)
}
