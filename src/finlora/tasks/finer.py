"""FiNER-139: which US-GAAP tag does a number in a sentence of a filing bear, of 139? (Loukas et al. 2022)

Source: hub `nlpaueb/finer-139` (tokens, ner_tags; 279 codes of which 0 is none), arXiv 2203.06482.  FinLoRA (arXiv
2505.19819) asks four questions a prompt, under a list of the tags.  A row is one of FinLoRA's batches, one question of it
({"context": the question's line, "target": the tag}), or a sentence of the hub with its codes or names.
Licence: CC BY-SA 4.0.
Splits: FinLoRA's test and train files were not obtained.  500 batches of a validation split (2,000 questions, file
finer_val.jsonl, 1,379 sentences, 132 of the tags) serve here: its first 1,500 questions as train, its last 500 as test.
`finer` asks one question a number; `finer@finlora` four at a time as published, a mark being the share of right tags.
Known errata: FinLoRA's list of tags has 140 entries, one of them empty, in the random order of a set; it asks for the first
three tagged tokens of a sentence only, and counts each further token of a number as a question of its own; its prompts have
no "Answer:", at which its evaluator cuts, so that a perfect model scores 0.020; a perfect answer scores 0.848 to 0.966 by
hash seed, some tags being the beginning of others.  In the rows here 1,949 of 2,000 questions differ (51 repeat another),
one of them with two answers; 32 of the 500 test questions are about a sentence of the train part, 20 are asked there in the
same words.
Cluster: the sentence, 358 in the test of 500 questions, 1,045 in train.
Floor: the tag commonest in train, DebtInstrumentInterestRateStatedPercentage (77 of 1,500), is right in 24 of 500 test
questions (0.048); the commonest of the test itself, DebtInstrumentFaceAmount, in 29 (0.058).  FinLoRA's older test file:
0.0629 of 2,002. Naive Bayes 0.458 (0.362 by another implementation, smoothing 1); the answer of the likest train question
0.462.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import FinloraError
from ..text import Example
from . import Source, Task, place_of, read_label
from ._tags import ENDING, Ask, asked, batched, mark_batch, one_each, read_batch

TAGS = tuple(
    """
    AccrualForEnvironmentalLossContingencies AcquiredFiniteLivedIntangibleAssetsWeightedAverageUsefulLife
    AllocatedShareBasedCompensationExpense AmortizationOfFinancingCosts AmortizationOfIntangibleAssets
    AntidilutiveSecuritiesExcludedFromComputationOfEarningsPerShareAmount AreaOfRealEstateProperty
    AssetImpairmentCharges BusinessAcquisitionEquityInterestsIssuedOrIssuableNumberOfSharesIssued
    BusinessAcquisitionPercentageOfVotingInterestsAcquired BusinessCombinationAcquisitionRelatedCosts
    BusinessCombinationConsiderationTransferred1 BusinessCombinationContingentConsiderationLiability
    BusinessCombinationRecognizedIdentifiableAssetsAcquiredAndLiabilitiesAssumedIntangibleAssetsOtherThanGoodwill
    BusinessCombinationRecognizedIdentifiableAssetsAcquiredAndLiabilitiesAssumedIntangibles
    CapitalizedContractCostAmortization CashAndCashEquivalentsFairValueDisclosure
    ClassOfWarrantOrRightExercisePriceOfWarrantsOrRights1 CommonStockCapitalSharesReservedForFutureIssuance
    CommonStockDividendsPerShareDeclared CommonStockParOrStatedValuePerShare CommonStockSharesAuthorized
    CommonStockSharesOutstanding ConcentrationRiskPercentage1 ContractWithCustomerLiability
    ContractWithCustomerLiabilityRevenueRecognized CumulativeEffectOfNewAccountingPrincipleInPeriodOfAdoption
    DebtInstrumentBasisSpreadOnVariableRate1 DebtInstrumentCarryingAmount DebtInstrumentConvertibleConversionPrice1
    DebtInstrumentFaceAmount DebtInstrumentFairValue DebtInstrumentInterestRateEffectivePercentage
    DebtInstrumentInterestRateStatedPercentage DebtInstrumentMaturityDate DebtInstrumentRedemptionPricePercentage
    DebtInstrumentTerm DebtInstrumentUnamortizedDiscount DebtWeightedAverageInterestRate DeferredFinanceCostsGross
    DeferredFinanceCostsNet DefinedBenefitPlanContributionsByEmployer DefinedContributionPlanCostRecognized Depreciation
    DerivativeFixedInterestRate DerivativeNotionalAmount DisposalGroupIncludingDiscontinuedOperationConsideration
    EffectiveIncomeTaxRateContinuingOperations EffectiveIncomeTaxRateReconciliationAtFederalStatutoryIncomeTaxRate
    EmployeeServiceShareBasedCompensationNonvestedAwardsTotalCompensationCostNotYetRecognized
    EmployeeServiceShareBasedCompensationNonvestedAwardsTotalCompensationCostNotYetRecognizedPeriodForRecognition1
    EmployeeServiceShareBasedCompensationNonvestedAwardsTotalCompensationCostNotYetRecognizedShareBasedAwardsOtherThanOptions
    EmployeeServiceShareBasedCompensationTaxBenefitFromCompensationExpense EquityMethodInvestmentOwnershipPercentage
    EquityMethodInvestments FiniteLivedIntangibleAssetUsefulLife GainsLossesOnExtinguishmentOfDebt Goodwill
    GoodwillImpairmentLoss GuaranteeObligationsMaximumExposure IncomeLossFromEquityMethodInvestments
    IncomeTaxExpenseBenefit InterestExpense InterestExpenseDebt LeaseAndRentalExpense LesseeOperatingLeaseRenewalTerm
    LesseeOperatingLeaseTermOfContract LettersOfCreditOutstandingAmount LineOfCredit
    LineOfCreditFacilityCommitmentFeePercentage LineOfCreditFacilityCurrentBorrowingCapacity
    LineOfCreditFacilityInterestRateAtPeriodEnd LineOfCreditFacilityMaximumBorrowingCapacity
    LineOfCreditFacilityRemainingBorrowingCapacity LineOfCreditFacilityUnusedCapacityCommitmentFeePercentage
    LongTermDebt LongTermDebtFairValue LossContingencyAccrualAtCarryingValue LossContingencyDamagesSoughtValue
    LossContingencyEstimateOfPossibleLoss LossContingencyPendingClaimsNumber
    MinorityInterestOwnershipPercentageByNoncontrollingOwners MinorityInterestOwnershipPercentageByParent
    NumberOfOperatingSegments NumberOfRealEstateProperties NumberOfReportableSegments OperatingLeaseCost
    OperatingLeaseExpense OperatingLeaseLiability OperatingLeasePayments OperatingLeaseRightOfUseAsset
    OperatingLeaseWeightedAverageDiscountRatePercent OperatingLeaseWeightedAverageRemainingLeaseTerm1
    OperatingLeasesRentExpenseNet OperatingLossCarryforwards PaymentsToAcquireBusinessesGross
    PaymentsToAcquireBusinessesNetOfCashAcquired PreferredStockDividendRatePercentage PreferredStockSharesAuthorized
    ProceedsFromIssuanceOfCommonStock PropertyPlantAndEquipmentUsefulLife
    PublicUtilitiesRequestedRateIncreaseDecreaseAmount RelatedPartyTransactionAmountsOfTransaction
    RelatedPartyTransactionExpensesFromTransactionsWithRelatedParty RepaymentsOfDebt
    RestructuringAndRelatedCostExpectedCost1 RestructuringCharges RevenueFromContractWithCustomerExcludingAssessedTax
    RevenueFromContractWithCustomerIncludingAssessedTax RevenueFromRelatedParties RevenueRemainingPerformanceObligation
    Revenues SaleOfStockNumberOfSharesIssuedInTransaction SaleOfStockPricePerShare ShareBasedCompensation
    ShareBasedCompensationArrangementByShareBasedPaymentAwardAwardVestingPeriod1
    ShareBasedCompensationArrangementByShareBasedPaymentAwardEquityInstrumentsOtherThanOptionsGrantsInPeriod
    ShareBasedCompensationArrangementByShareBasedPaymentAwardEquityInstrumentsOtherThanOptionsGrantsInPeriodWeightedAverageGrantDateFairValue
    ShareBasedCompensationArrangementByShareBasedPaymentAwardEquityInstrumentsOtherThanOptionsNonvestedNumber
    ShareBasedCompensationArrangementByShareBasedPaymentAwardEquityInstrumentsOtherThanOptionsVestedInPeriodTotalFairValue
    ShareBasedCompensationArrangementByShareBasedPaymentAwardNumberOfSharesAuthorized
    ShareBasedCompensationArrangementByShareBasedPaymentAwardNumberOfSharesAvailableForGrant
    ShareBasedCompensationArrangementByShareBasedPaymentAwardOptionsExercisesInPeriodTotalIntrinsicValue
    ShareBasedCompensationArrangementByShareBasedPaymentAwardOptionsGrantsInPeriodGross
    ShareBasedCompensationArrangementByShareBasedPaymentAwardOptionsGrantsInPeriodWeightedAverageGrantDateFairValue
    SharePrice SharebasedCompensationArrangementBySharebasedPaymentAwardAwardVestingRightsPercentage
    SharebasedCompensationArrangementBySharebasedPaymentAwardExpirationPeriod StockIssuedDuringPeriodSharesNewIssues
    StockRepurchaseProgramAuthorizedAmount1 StockRepurchaseProgramRemainingAuthorizedRepurchaseAmount1
    StockRepurchasedAndRetiredDuringPeriodShares StockRepurchasedDuringPeriodShares
    SupplementalInformationForPropertyCasualtyInsuranceUnderwritersPriorYearClaimsAndClaimsAdjustmentExpense
    TreasuryStockAcquiredAverageCostPerShare TreasuryStockSharesAcquired TreasuryStockValueAcquiredCostMethod
    UnrecognizedTaxBenefits UnrecognizedTaxBenefitsThatWouldImpactEffectiveTaxRate
    """.split()
)
# The hub numbers its names O, then each tag's B- in this order, the I- of these tags right behind their B-, all other I- last.
INSIDE = frozenset(
    """
    AcquiredFiniteLivedIntangibleAssetsWeightedAverageUsefulLife AmortizationOfIntangibleAssets
    AntidilutiveSecuritiesExcludedFromComputationOfEarningsPerShareAmount AreaOfRealEstateProperty
    BusinessAcquisitionPercentageOfVotingInterestsAcquired CommonStockSharesAuthorized DebtInstrumentFaceAmount
    DebtInstrumentMaturityDate DebtInstrumentTerm
    EmployeeServiceShareBasedCompensationNonvestedAwardsTotalCompensationCostNotYetRecognizedPeriodForRecognition1
    EquityMethodInvestmentOwnershipPercentage FiniteLivedIntangibleAssetUsefulLife LesseeOperatingLeaseRenewalTerm
    LesseeOperatingLeaseTermOfContract LossContingencyPendingClaimsNumber NumberOfRealEstateProperties
    OperatingLeaseWeightedAverageRemainingLeaseTerm1 PreferredStockSharesAuthorized PropertyPlantAndEquipmentUsefulLife
    RelatedPartyTransactionAmountsOfTransaction RelatedPartyTransactionExpensesFromTransactionsWithRelatedParty
    SaleOfStockNumberOfSharesIssuedInTransaction
    ShareBasedCompensationArrangementByShareBasedPaymentAwardAwardVestingPeriod1
    ShareBasedCompensationArrangementByShareBasedPaymentAwardEquityInstrumentsOtherThanOptionsGrantsInPeriod
    ShareBasedCompensationArrangementByShareBasedPaymentAwardNumberOfSharesAuthorized
    SharebasedCompensationArrangementBySharebasedPaymentAwardAwardVestingRightsPercentage
    SharebasedCompensationArrangementBySharebasedPaymentAwardExpirationPeriod
    StockIssuedDuringPeriodSharesNewIssues StockRepurchasedDuringPeriodShares TreasuryStockSharesAcquired
    """.split()
)
NAMES = ("O", *(name for t in TAGS for name in ((f"B-{t}", f"I-{t}") if t in INSIDE else (f"B-{t}",))))
CODES = 2 * len(TAGS) + 1  # those from len(NAMES) on continue a number

QUESTION = 'What is best tag for entity "{entity}" in sentence: "{sentence}?"'  # FinLoRA's, its last marks included
_ASK = re.compile(r'^(?:\d+\. )?(?P<line>What is best tag for entity "(?P<entity>.*?)" in sentence: "(?P<sentence>.*?)\?")$', re.DOTALL | re.MULTILINE)
_KNOWN = frozenset(TAGS)


def one_prompt(line: str) -> str:
    """The prompt of one question, without a list of the tags: they are chosen from, or taught."""
    return f"You are XBRL expert. Answer the following question by providing only the US GAAP tag. Provide nothing else.\n{line}\nOutput US GAAP tag: "


def batch_prompt(lines: list[str]) -> str:
    """FinLoRA's prompt, its list of tags sorted and without the empty one."""
    n = len(lines)
    return (
        f"You are XBRL expert.  Here is a list of US GAAP tags options: {','.join(TAGS)}. Answer the following {n} independent questions by"
        f" providing only  {n} US GAAP tags answers in the order of the questions. Each answer must be saperated by a comma (,).  Provide nothing else. \n"
        + "\n".join(f"{k}. {line}" for k, line in enumerate(lines, 1))
        + ENDING
    )


def spans(row: Mapping[str, Any], place: str) -> list[Ask]:
    """The questions of a sentence in the hub's form, one for each number, its tokens joined by spaces.

    Raises: FinloraError for tokens and codes of different lengths, or a code or name that is none of the set's.
    """
    tokens, codes = row["tokens"], row.get("ner_tags")
    if not isinstance(tokens, list) or not isinstance(codes, list) or len(tokens) != len(codes):
        raise FinloraError(f"{place}: `tokens` and `ner_tags` should be lists of one length", "a row of the hub's set, or FinLoRA's context + target")
    found: list[tuple[str, list[str]]] = []
    inside = False
    for token, code in zip(map(str, tokens), codes):
        name = _name(code, place)
        if name.startswith("B-") or (name != "O" and not inside):
            if name == "I-":
                raise FinloraError(f"{place}: code {code} continues a number where none began", "codes are those of nlpaueb/finer-139")
            found.append((name[2:], [token]))
        elif name != "O":
            found[-1][1].append(token)
        inside = name != "O"
    sentence = " ".join(map(str, tokens))
    return [Ask(QUESTION.format(entity=" ".join(words), sentence=sentence), " ".join(words), sentence, tag) for tag, words in found]


def _name(code: Any, place: str) -> str:
    """ "O", "B-tag" or "I-tag" of a code or name, "I-" of a code that only continues."""
    if isinstance(code, str) and (code in ("O", "-") or (code[:2] in ("B-", "I-") and code[2:] in _KNOWN)):
        return "O" if code == "-" else code
    if isinstance(code, int) and not isinstance(code, bool) and 0 <= code < CODES:
        return NAMES[code] if code < len(NAMES) else "I-"
    raise FinloraError(f"{place}: unknown code {code!r:.60} in `ner_tags`", f"0 to {CODES - 1}, or names such as B-Revenues")


def _asks(row: Mapping[str, Any], index: int) -> list[Ask]:
    place = place_of(row, index)
    return spans(row, place) if "tokens" in row else asked(row, _ASK, place, _KNOWN.__contains__)


def _examples(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    yield from one_each("finer", _asks(row, index), index, one_prompt, TAGS)


def _published(row: Mapping[str, Any], index: int) -> Iterator[Example]:
    """A batch as it stands; a row of one question in the same form, as a batch of one."""
    asks = _asks(row, index)
    if not asks:
        return
    whole = "context" in row and len(asks) > 1 or str(row.get("context", "")).endswith(ENDING)
    yield batched("finer", asks, index, row["context"] if whole else batch_prompt([a.line for a in asks]))


def _read(text: str, labels: Any) -> str | None:
    return read_label(re.sub(r"us-?gaap\s*[:_]\s*", "", text, count=1, flags=re.IGNORECASE), labels or TAGS)


_SOURCE = Source(
    hub="nlpaueb/finer-139",
    url="https://huggingface.co/datasets/nlpaueb/finer-139",
    finlora="Open-Finance-Lab/FinLoRA@7e1cf82803aa56a5f698d71e1528395e16b21093:data/test/finer_test_batched.jsonl",
    licence="CC BY-SA 4.0",
    files={
        "train": ("finer_train_batched.jsonl", "finer_train.jsonl"),
        "test": ("finer_test_batched.jsonl", "finer_test.jsonl"),
    },
    whole={"finer_val.jsonl": {"train": (0, 1500), "test": (1500, None)}},
    columns={"text": ("tokens",), "label": ("ner_tags",)},
)
_ERRATA = "32 of 500 test questions are about a sentence of the train part; published: an empty tag in the list, no end that its grader can read"

TASK = Task(
    name="finer",
    labels=TAGS,
    examples=_examples,
    read=_read,
    source=_SOURCE,
    errata=_ERRATA,
    majority={"test": ("DebtInstrumentFaceAmount", 29 / 500, 500), "train": ("DebtInstrumentInterestRateStatedPercentage", 77 / 1500, 1500)},
    max_new=64,
    group="tagging",
)

VARIANTS = {
    "finlora": Task(
        name="finer@finlora",
        labels=(),
        kind="text",
        way="say",
        examples=_published,
        read=read_batch,
        mark=mark_batch,
        source=_SOURCE,
        errata=_ERRATA,
        max_new=192,
        group="tagging",
    )
}
